"""What the pages tell an operator to do can be done."""

import re
import shlex
import shutil
import subprocess

import pytest
import yaml

from routing.cli import build_parser, main

from .conftest import BASE, EXAMPLES, ROOT

PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("kubernetes.md", "operate.md")}


def commands(text):
    """Lines of `python -m routing` in blocks of code."""
    for block in re.findall(r"^```\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("python -m routing "):
                yield shlex.split(line, comments=True)[3:]


@pytest.mark.parametrize("name", PAGES)
def test_commands_are_those_of_the_program(name, capsys):
    found = list(commands(PAGES[name]))
    for one in found:
        build_parser().parse_args(one)
    assert not capsys.readouterr().err
    assert len(found) >= {"kubernetes.md": 5, "operate.md": 0}[name]


@pytest.mark.parametrize("name", PAGES)
def test_pages_and_files_that_are_pointed_to_are_there(name):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[name]):
        assert (ROOT / "docs" / target).exists(), target
    for path in re.findall(r"`((?:deploy|tests|docs|assets)/[\w./-]+)`", PAGES[name]):
        assert (ROOT / path).exists(), path


def test_panels_that_are_pointed_to_are_there():
    boards = yaml.safe_load((ROOT / "deploy" / "grafana" / "boards.yaml").read_text())
    titles = " | ".join(panel["title"] for board in boards.values() for row in board["rows"] for panel in row["panels"])
    others = {"computing ended after", "decode latents", "follower", "days until", "From region to region"}
    for title in set(re.findall(r"(?<!\*)\*([A-Za-z][^*\n]+)\*(?!\*)", PAGES["operate.md"])) - others:
        assert title.lower() in titles.lower(), title


def test_the_certificates_of_the_page_are_what_render_and_envoy_take(tmp_path, envoy):  # noqa: ARG001
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    blocks = re.findall(r"^```\n(.*?)^```", PAGES["kubernetes.md"], re.MULTILINE | re.DOTALL)
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
