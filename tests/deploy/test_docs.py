"""What the pages tell an operator to do can be done."""

import re
import shutil
import subprocess

import pytest
import yaml

from routing.cli import main

from .conftest import BASE, EXAMPLES, ROOT

PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("kubernetes.md", "operate.md")}


def test_panels_that_are_pointed_to_are_there():
    boards = yaml.safe_load((ROOT / "deploy" / "grafana" / "boards.yaml").read_text())
    titles = " | ".join(panel["title"] for board in boards.values() for row in board["rows"] for panel in row["panels"])
    others = {"computing ended after", "decode latents", "follower", "days until", "From region to region"}
    for title in set(re.findall(r"(?<!\*)\*([A-Za-z][^*\n]+)\*(?!\*)", PAGES["operate.md"])) - others:
        assert title.lower() in titles.lower(), title


def test_the_certificates_of_the_page_are_what_render_and_envoy_take(tmp_path, programs):  # noqa: ARG001
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGES["kubernetes.md"], re.MULTILINE | re.DOTALL)
    (script,) = [one for one in blocks if "openssl req" in one]
    subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, check=True, capture_output=True)
    for name in ("fleet.yaml", "kubernetes.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path / name)
    files = ("--fleet", str(tmp_path / "fleet.yaml"), "--settings", str(tmp_path / "kubernetes.yaml"))
    where = ("--out", str(tmp_path / "overlays"), "--base", str(BASE), "--validate")
    assert main(["render", "--target", "kubernetes", *files, *where]) == 0


@pytest.mark.parametrize("folder", ["prometheus", "grafana"])
def test_rules_and_dashboards_are_config_maps_with_all_files(folder, kustomize, check):
    (config,) = kustomize(ROOT / "deploy" / folder)
    check(config)
    kept = "rules/*.yml" if folder == "prometheus" else "dashboards/*.json"
    assert set(config["data"]) == {path.name for path in (ROOT / "deploy" / folder).glob(kept)}
