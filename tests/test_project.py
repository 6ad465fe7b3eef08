"""The Makefile and the lock: what a newcomer meets first."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pip
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = [ROOT / "constraints.txt", ROOT / "serving" / "requirements.txt"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


def make(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**clean, **environment},
    )


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def environment(tmp_path):
    """Looks like a finished `.venv`; its Python prints the arguments that it is given, one a line."""
    folder = tmp_path / "venv"
    program(folder / "bin" / "python", '#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program(folder / "bin" / "pip", "#!/bin/sh\nexit 1\n")
    (folder / ".ready").touch()
    return folder


@needs_make
def test_help_lists_every_target_that_is_meant_for_people():
    listed = re.findall(r"^  ([a-z-]+) ", make("help").stdout, flags=re.MULTILINE)
    declared = re.findall(r"^\.PHONY: ([a-z-]+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert listed == declared
    assert {"setup", "demo", "test", "test-all", "lint", "format", "types", "lock", "train", "serve"} <= set(listed)


@needs_make
@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle moves right",
        """it's a "red" circle""",
        "$HOME costs $5 and $(shell echo no) `id` $((1+1))",
        "semi;colon & pipe | star * # hash % \\ back\\slash",
        "--help",
        "猫が走る 🙂",
    ],
)
def test_a_prompt_and_a_path_reach_the_demo_as_they_were_typed(environment, prompt):
    done = make("demo", f"VENV={environment}", "IMAGE=my own photo $1.jpg", f"PROMPT={prompt}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["-m", "pipeline", "demo", "--image=my own photo $1.jpg", f"--prompt={prompt}"]


@needs_make
def test_the_demo_without_a_picture_is_given_none(environment):
    assert make("demo", f"VENV={environment}").stdout.splitlines() == ["-m", "pipeline", "demo"]


@needs_make
def test_a_second_run_installs_nothing(environment):
    # The Python of this environment would print the arguments of pip.
    done = make("setup", f"VENV={environment}")
    assert done.returncode == 0
    assert "install" not in done.stdout


@needs_make
def test_a_change_of_the_lock_installs_again(environment):
    os.utime(environment / ".ready", (0, 0))
    assert "install" in make("setup", f"VENV={environment}").stdout


@needs_make
@pytest.mark.parametrize("name", ["no-such-python", "python-of-the-past"])
def test_a_machine_without_a_fitting_python_is_told_which_fits(tmp_path, name):
    program(tmp_path / "python-of-the-past", "#!/bin/sh\nexit 1\n")
    done = make("setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={name}", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode != 0
    assert "Python 3.11, 3.12 or 3.13" in done.stderr
    assert name in done.stderr
    assert not (tmp_path / "venv").exists()


@needs_make
def test_a_python_that_cannot_make_environments_names_the_package_that_is_missing(tmp_path):
    python = program(
        tmp_path / "python3-without-venv",
        f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"\n',
    )
    done = make("setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}")
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stderr


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_names_neither_an_index_nor_a_path_and_pins_everything(lock):
    lines = [line for line in lock.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) > 50
    for line in lines:
        requirement = Requirement(line)
        assert requirement.url is None
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], line
        assert "+" not in str(requirement.specifier), line  # a local build is found on one machine only
    assert not re.search(r"://|file:|--(?:extra-)?index-url|--find-links", lock.read_text())


def direct(extra):
    """Requirements of an extra and of the extras that it takes in."""
    found = list(PROJECT["dependencies"])
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            for other in requirement.extras:
                found += direct(other)
        else:
            found.append(text)
    return found


@pytest.mark.parametrize(("lock", "extra"), list(zip(LOCKS, ["dev", "serve"], strict=True)))
def test_a_lock_fits_what_the_project_asks_for(lock, extra):
    pinned = {}
    for line in lock.read_text().splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(line)
            pinned.setdefault(canonicalize_name(requirement.name), []).append(next(iter(requirement.specifier)).version)
    for text in direct(extra):
        requirement = Requirement(text)
        versions = pinned.get(canonicalize_name(requirement.name), [])
        assert versions, f"{requirement.name} is not in {lock.name}: run `make lock`"
        assert all(requirement.specifier.contains(version) for version in versions), text


def test_the_smaller_lock_agrees_with_the_whole_one():
    whole, smaller = (set(re.findall(r"^[\w.-]+==\S+", lock.read_text(), flags=re.MULTILINE)) for lock in LOCKS)
    assert smaller <= whole


@pytest.fixture
def installer():
    spec = importlib.util.spec_from_file_location("install", ROOT / "scripts" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_a_person_told_pip_is_told_to_uv(installer, tmp_path, monkeypatch):
    (tmp_path / "wheels").mkdir()
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex-url = https://of.a.company/simple\ntrusted-host = of.a.company\n"
        f"extra-index-url =\n    https://another/simple\n    file://{tmp_path}/nowhere\n"
        f"find-links = {tmp_path}/nowhere\n[install]\ncert = {settings}\n"
    )
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_", "SSL_CERT_", "ALL_PROXY")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path}/wheels")  # comes before the file
    monkeypatch.setenv("PIP_VERBOSE", "1")  # and says more
    told = installer.pip_settings()
    options, environment = installer.for_uv({**told, "constraint": "~/a.txt", "no-index": "yes"}, {"HOME": "/home"})
    flags = list(itertools.pairwise(options))
    assert ("--default-index", "https://of.a.company/simple") in flags
    assert ("--index", "https://another/simple") in flags
    assert ("--find-links", f"{tmp_path}/wheels") in flags
    assert ("--allow-insecure-host", "of.a.company") in flags
    assert ("-c", str(Path("~/a.txt").expanduser())) in flags
    assert "--no-index" in options
    assert not any("nowhere" in option for option in options)
    assert environment == {"HOME": "/home", "UV_INDEX_STRATEGY": "unsafe-best-match", "SSL_CERT_FILE": str(settings)}


def test_whoever_tells_uv_itself_where_packages_are_is_not_spoken_for(installer):
    options, environment = installer.for_uv(
        {"extra-index-url": "https://x", "no-cache-dir": "1"}, {"UV_INDEX": "https://y"}
    )
    assert options == []
    assert environment == {
        "UV_INDEX": "https://y",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_NO_CACHE": "1",
        "UV_SYSTEM_CERTS": "1",
    }


def test_packages_that_cannot_be_had_end_the_installation_and_the_next_one_takes_nothing_for_installed(tmp_path):
    folder = tmp_path / "project"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "install.py", folder / "scripts")
    shutil.copy(ROOT / "constraints.txt", folder)
    venv.create(tmp_path / "venv")
    of_pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", folder / "scripts" / "install.py", "dev"],
        env={**os.environ, **of_pip, "PYTHONPATH": str(Path(pip.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "No matching distribution found for uv==" in done.stderr
    assert "pip tries it" in done.stderr
    assert (tmp_path / "venv" / ".installing").exists()
    assert "Traceback" not in done.stderr


def test_the_script_of_the_build_server_can_be_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "make test" in (ROOT / ".ci" / "run").read_text()
