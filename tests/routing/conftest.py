from pathlib import Path

import pytest
import yaml

from routing.fleet import load_fleet

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def examples() -> Path:
    """Folder of the example files."""
    return ROOT / "docs" / "examples"


@pytest.fixture(scope="session")
def example_fleet(examples):
    return load_fleet(examples / "fleet.yaml")


@pytest.fixture
def fleet_file(examples, tmp_path):
    """Writes the example fleet after a change of its content, or a text, and gives the path."""

    def write(change=None, text=None) -> Path:
        content = yaml.safe_load((examples / "fleet.yaml").read_text())
        if change is not None:
            change(content)
        path = tmp_path / "fleet.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False) if text is None else text)
        return path

    return write
