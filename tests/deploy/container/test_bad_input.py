"""What is missing is said in one line, before anything is built. Engines are stand-ins: the real ones would work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.container.__main__ import main

ROOT = Path(__file__).resolve().parents[3]

# No image is here, and no registry is reached.
OFFLINE = 'case "$1" in pull) echo "Error: lookup registry.example: no such host" >&2;; esac; exit 125'
# Every image is here, but nothing can be built or started.
BROKEN = 'case "$1" in image) exit 0;; esac; echo "Error: crun: not permitted" >&2; exit 126'


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in an environment; what it left, as of a process of its own."""
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.models import ModelStore

    store = BentoMLContainer.model_store.get()

    def command(environment, out, *arguments):
        with monkeypatch.context() as inside:
            inside.setattr(os, "environ", os.environ.copy())
            os.environ.clear()
            os.environ.update(environment)
            if "BENTOML_HOME" in environment:
                models = Path(environment["BENTOML_HOME"], "models")
                models.mkdir(parents=True, exist_ok=True)
                BentoMLContainer.model_store.set(ModelStore(models))
            try:
                status = main(["--out", str(out), *arguments])
            except SystemExit as ended:
                status = ended.code
        return SimpleNamespace(returncode=status, **capsys.readouterr()._asdict())

    yield command
    BentoMLContainer.model_store.set(store)


def one_line(done, status=1):
    assert done.returncode == status, done.err
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.err
    return lines[0]


@pytest.mark.parametrize(
    ("programs", "arguments", "said"),
    [
        ({}, (), "no container engine: neither Docker (with its daemon), podman nor buildah is here"),
        ({"docker": "exit 1"}, (), "no container engine"),
        ({"docker": "exit 1"}, ("--engine", "docker"), "docker: its daemon does not answer"),
        ({"buildah": "exit 0"}, (), "buildah builds images, and podman starts them: apt-get install podman"),
        ({"podman": "exit 0"}, ("--engine", "buildah"), "buildah is not installed"),
        ({"podman": "exit 0"}, ("--tag", "No Name"), "--tag: 'No Name' is no name of an image"),
    ],
)
def test_an_engine_that_is_missing_is_named(run, engines, tmp_path, programs, arguments, said):
    assert said in one_line(run(engines(**programs), tmp_path / "out", *arguments))


@pytest.mark.parametrize("model", ["animator:latest", "animator:never"])
def test_a_model_that_is_missing_is_named_with_the_way_to_one(run, engines, tmp_path, model):
    environment = {**engines(podman="exit 0"), "BENTOML_HOME": str(tmp_path / "home")}
    line = one_line(run(environment, tmp_path / "out", "--model", model))
    assert line.startswith(f"error: {model}: neither a folder nor a model in the BentoML store")
    assert "make demo" in line


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            OFFLINE,
            "the base image example/base:1 is not here, and no registry gives it (Error: lookup registry.example",
        ),
        (BROKEN, "podman builds nothing here: Error: crun: not permitted"),
    ],
)
def test_nothing_is_built_where_a_base_or_rights_are_missing(run, engines, tmp_path, described_model, program, said):
    home, _ = described_model
    environment = {**engines(podman=program), "BENTOML_HOME": str(home)}
    before = list((home / "bentos").glob("*/*"))
    assert said in one_line(run(environment, tmp_path / "out", "--base", "example/base:1"))
    assert list((home / "bentos").glob("*/*")) == before
    assert not list((tmp_path / "out").iterdir())


def test_a_model_that_a_container_could_not_read_is_not_mounted(run, engines, tmp_path, described_model):
    home, tag = described_model
    model = shutil.copytree(home / "models" / tag.replace(":", "/"), tmp_path / "model")
    model.chmod(0o700)
    line = one_line(run(engines(podman="exit 0"), tmp_path / "out", "--mounted", "--model", str(model)))
    assert f"chmod go+rx {model}" in line


@pytest.mark.parametrize("port", ["-1", "70000", "http"])
def test_a_port_that_is_none_is_wrong_use(run, engines, tmp_path, port):
    done = run(engines(), tmp_path / "out", f"--port={port}")
    assert done.returncode == 2
    assert f"{port} is not a port" in done.err


def test_as_a_program_it_says_the_same(engines, tmp_path):
    command = [sys.executable, "-m", "deploy.container", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=engines(), capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no container engine")
    assert done.stderr.count("\n") == 1
