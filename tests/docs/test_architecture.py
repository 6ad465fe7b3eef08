"""Who imports whom is as docs/architecture.md has it."""

from __future__ import annotations

import ast

import pytest

from .pages import ROOT

SERVERS_NEED = {"engine", "errors", "images", "quiet", "spans", "store", "video"}
ALLOWED = {
    "pipeline": {},
    "serving": {"pipeline": SERVERS_NEED},
    "service.py": {"serving": None, "pipeline": SERVERS_NEED},
    "routing": {},
    "loadtests": {"routing": None},
    "deploy": {"pipeline": {"console", "engine", "errors", "store"}},
}
OURS = {"pipeline", "serving", "service", "routing", "loadtests", "deploy"}


def imports(path):
    """Modules of ours that a file imports, at whatever depth: `pipeline.serve.engine` as (pipeline, engine)."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            whole = node.module or ""
            names = [f"{whole}.{alias.name}" for alias in node.names] if whole in OURS else [whole]
        for name in names:
            package, _, rest = name.partition(".")
            if package in OURS:
                yield package, rest.split(".")[0]


@pytest.mark.parametrize("name", ALLOWED)
def test_a_package_imports_only_what_it_may(name):
    files = [ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py"))
    assert files
    for path in files:
        for package, module in imports(path):
            if package == name:
                continue
            assert package in ALLOWED[name], f"{path.relative_to(ROOT)} imports {package}"
            modules = ALLOWED[name][package]
            assert modules is None or module in modules, f"{path.relative_to(ROOT)} imports {package}.{module}"


@pytest.mark.parametrize("name", ["routing", "loadtests"])
def test_traffic_needs_no_pytorch(name):
    for path in (ROOT / name).rglob("*.py"):
        found = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert not found & {"torch", "diffusers", "transformers", "bentoml"}, path
