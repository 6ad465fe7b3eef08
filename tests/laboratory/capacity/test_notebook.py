"""The notebook, on the example, without what it depends on."""

import json
from pathlib import Path

import papermill
import pytest

BOOK = Path(__file__).resolve().parents[3] / "notebooks" / "05_capacity.ipynb"

# Kernels start slowly on a busy machine.
pytestmark = pytest.mark.timeout(600)


def test_the_notebook_plans_the_example(tmp_path):
    given = {"run_folder": str(tmp_path), "sensitivity": False}
    papermill.execute_notebook(BOOK, tmp_path / "out.ipynb", given, progress_bar=False)
    result = json.loads((tmp_path / "05_capacity" / "result.json").read_text())
    assert result["metrics"]["capacity"]["total"]["gpus"] > 400
    assert [figure["picture"] for figure in result["figures"]] == ["week.png", "gpus.png"]
    assert "with any one region lost" in result["summary"]
