"""Who imports whom is as docs/architecture.md has it."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from .pages import ROOT

SERVERS_NEED = {"errors", "media", "model", "quiet", "serve", "spans"}
ALLOWED = {
    "pipeline": {},
    "serving": {"pipeline": SERVERS_NEED},
    "service.py": {"serving": None, "pipeline": SERVERS_NEED},
    "routing": {},
    "laboratory": {"routing": None},
    "jobs": {},
    "loadtests": {"laboratory": None, "routing": None},
    "deploy": {"pipeline": {"console", "errors", "serve"}},
}
OURS = {"pipeline", "serving", "service", "jobs", "routing", "laboratory", "loadtests", "deploy"}

ROOMS = {
    "media": set(),
    "model": {"media"},
    "optimise": {"media", "model"},
    "serve": {"media", "model", "optimise"},
    "clips": set(),
    "judge": {"media", "model", "serve", "clips"},
    "train": {"media", "model", "clips", "judge"},
    "distill": {"media", "model", "optimise", "serve", "clips", "judge", "train"},
    "bench": {"media", "model", "optimise", "serve", "clips", "judge", "train", "distill"},
    "packaging": {"media", "model", "optimise", "serve"},
    "runs": {"media", "model", "serve", "clips", "judge", "distill"},
}
"""Rooms of `pipeline/` by those that each may import; what lies beside them, such as `errors`, imports none. `commands`
may import all."""


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


def test_only_the_command_line_of_routing_knows_the_laboratory_and_does_without():
    naming = [path for path in (ROOT / "routing").rglob("*.py") if '"laboratory' in path.read_text()]
    assert naming == [ROOT / "routing" / "cli.py"]
    code = (
        "import sys; sys.modules['laboratory'] = None\n"
        "from routing.cli import build_parser\n"
        "print(build_parser().format_help())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "control" in done.stdout
    assert "simulate" not in done.stdout


@pytest.mark.parametrize("name", ["jobs", "routing", "laboratory", "loadtests"])
def test_traffic_and_jobs_need_no_pytorch(name):
    for path in (ROOT / name).rglob("*.py"):
        found = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert not found & {"torch", "diffusers", "transformers", "bentoml"}, path


def rooms_of(path):
    """Rooms of `pipeline/` that a module of it imports by a relative import."""
    here = path.relative_to(ROOT / "pipeline").parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            names = [(node.module or alias.name).split(".")[0] for alias in node.names]
            yield from (base[0] if base else name for name in names)


@pytest.mark.parametrize("room", [*ROOMS, ""])
def test_a_room_of_the_pipeline_imports_only_those_below_it(room):
    folder = ROOT / "pipeline" / room
    files = sorted(folder.rglob("*.py") if room else folder.glob("*.py"))
    assert files
    allowed = ROOMS.get(room, {"commands", "model"})  # the package's own name for its class, and its commands
    for path in files:
        odd = {name for name in rooms_of(path) if name in {*ROOMS, "commands"}} - {room} - allowed
        assert not odd, f"{path.relative_to(ROOT)} imports {', '.join(sorted(odd))}"


def test_no_modules_of_the_pipeline_import_each_other_in_a_circle():
    """Imports within `if TYPE_CHECKING:` count too, but for the pipeline's own class, which all are given."""
    root = ROOT / "pipeline"
    modules = {path.relative_to(root).with_suffix("").parts: path for path in root.rglob("*.py")}
    wanted = {}
    for parts, path in modules.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = parts[:-1][: len(parts) - node.level]
                inner = (*base, *(node.module or "").split(".")) if node.module else base
                for alias in node.names:
                    found.update({(*inner, alias.name), inner} & modules.keys())
        wanted[parts] = found - {parts, ("model", "animation")}
    left = dict(wanted)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import each other: {sorted('.'.join(name) for name in left)}"
