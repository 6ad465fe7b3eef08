"""The Dockerfile that `bentoml build` makes of our template, and what goes into the image's build."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SECRETS = {"PIP_INDEX_URL": "https://somebody:password@mirror.example/simple", "PIP_FIND_LINKS": "/nowhere/wheels"}


@pytest.fixture(scope="module")
def bento(described_model):
    """Folder of a Bento that was built where pip goes through a mirror."""
    home, _ = described_model
    environment = os.environ | {"BENTOML_HOME": str(home)} | SECRETS
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    version = re.findall(r"__tag__:stillmotion:(\S+)", done.stdout)[-1]
    return home / "bentos" / "stillmotion" / version


@pytest.fixture(scope="module")
def stages(bento):
    """Instructions of each stage, continued lines joined; the last one is the image."""
    text = re.sub(r"\\\n", " ", (bento / "env/docker/Dockerfile").read_text())
    instructions = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found: list[list[tuple[str, str]]] = [[]]
    for name, rest in instructions:
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest))
    return found


def test_it_runs_as_a_user_with_a_number_that_is_not_root(stages):
    users = [rest for name, rest in stages[-1] if name == "USER"]
    uid, gid = users[-1].split(":")
    assert int(uid) > 0  # a name would not do: Kubernetes cannot see that it is not root's
    assert int(gid) > 0


def test_it_has_a_health_check_an_entry_point_and_ends_on_sigterm(stages):
    image = dict(stages[-1])
    assert "serving/ready.py" in image["HEALTHCHECK"]
    assert "--start-period" in image["HEALTHCHECK"]
    # In the form of a list: a shell between would not pass SIGTERM on.
    assert image["ENTRYPOINT"].startswith('["')
    assert image["STOPSIGNAL"] == "SIGTERM"


def test_nothing_is_installed_into_the_image_itself(stages):
    commands = " ".join(rest for name, rest in stages[-1] if name == "RUN")
    assert not re.search(r"\b(pip|apt|apt-get|curl|gcc|uv)\b", commands)
    copied = [rest for name, rest in stages[-1] if name == "COPY"]
    assert copied
    assert all("--from=" in rest for rest in copied)


def test_the_base_can_be_given_with_its_digest(stages):
    assert stages[0] == [("ARG", "BASE_IMAGE=docker.io/library/python:3.11-slim")]
    bases = {rest.split()[0] for stage in stages[1:] for name, rest in stage if name == "FROM"}
    assert bases == {"scratch", "${BASE_IMAGE}", "packages", "trimmed"}


def test_writable_places_are_all_below_tmp(stages):
    variables = " ".join(rest for name, rest in stages[-1] if name == "ENV")
    assert "BENTOML_HOME=/tmp/" in variables
    assert "HOME=/tmp " in variables  # where libraries keep what they keep
    assert "VOLUME" not in dict(stages[-1])


def test_nothing_of_this_machines_pip_gets_into_it(bento):
    for path in bento.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"mirror.example" not in content, path
            assert b"/nowhere/wheels" not in content, path


def test_what_the_build_reads_is_in_the_bento(bento):
    names = {path.relative_to(bento / "src").as_posix() for path in (bento / "src").rglob("*") if path.is_file()}
    helpers = {f"deploy/container/{name}.py" for name in ("bytecode", "inventory", "packages")}
    assert {"constraints.txt", "pyproject.toml", *helpers} <= names
    # Patterns without a slash would find more files of the same name.
    assert not [name for name in names if name.startswith("routing")]
