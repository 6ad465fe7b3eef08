"""From the store and the sources to an image: `bentoml build`, then `bentoml containerize`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.serve.manifest import ModelInfo
from pipeline.serve.store import resolve

from . import wheels
from .engine import Engine, fetch_base, find, fit, last_line
from .errors import ContainerError

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_BASE = "docker.io/library/python:3.11-slim"

_TAG = re.compile(r"[a-z0-9]+([._/:-]+[a-z0-9]+)*")


@dataclass(frozen=True)
class Wanted:
    """What is to be built.

    Attributes:
        model: tag in the store.
        mounted: the model stays out of the image, and is mounted when it starts.
        base: image that it builds on.
        tag: name of the image; None: that of the Bento.
        engine: docker, podman or buildah; None: what is here.
    """

    model: str = "animator:latest"
    mounted: bool = False
    base: str = DEFAULT_BASE
    tag: str | None = None
    engine: str | None = None


@dataclass(frozen=True)
class Ready:
    """What a build needs, all of it found.

    Attributes:
        model: tag in the store, with its version.
        folder: of the model.
        info: what the model says of itself.
        elsewhere: settings of pip that lead it elsewhere than straight to PyPI.
    """

    wanted: Wanted
    engine: Engine
    model: str
    folder: Path
    info: ModelInfo
    elsewhere: list[str]


def check(wanted: Wanted, tell: Callable[[str], None]) -> Ready:
    """Find all that a build needs, before anything is built.

    Raises:
        ModelError: there is no such model in the store.
        ContainerError: no engine, no base image, an image's name that is none, or a model that nobody else may read.
    """
    if wanted.tag is not None and not _TAG.fullmatch(wanted.tag):
        raise ContainerError(f"--tag: {wanted.tag!r} is no name of an image; for example stillmotion:1")
    engine = find(wanted.engine)
    model, folder = resolve(wanted.model)
    info = ModelInfo.read(folder)
    if wanted.mounted and (folder.stat().st_mode & 0o005) != 0o005:
        raise ContainerError(
            f"{model}: only its owner may read the folder, and a container is another user: chmod go+rx {folder}"
        )
    fetch_base(engine, wanted.base)
    engine = fit(engine, wanted.base)
    needs = [*(f"{key}={value}" for key, value in engine.environment.items()), *engine.start_options]
    tell(f"{engine.builder} builds and {engine.runner} starts" + (f" ({' '.join(needs)})" if needs else ""))
    tell(f"base {wanted.base}, model {model} ({info.runtime}, {info.steps} steps)")
    elsewhere = wheels.goes_elsewhere(wheels.pip_configuration()) if sys.platform == "linux" else []
    if elsewhere:
        _same_python(engine, wanted.base)
    return Ready(wanted, engine, model, folder, info, elsewhere)


def _same_python(engine: Engine, base: str) -> None:
    """Wheels that pip collects here have to fit the image."""
    code = "import sys, sysconfig; print('{}.{}'.format(*sys.version_info), sysconfig.get_platform())"
    here = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603  # our own
    arguments = ("--rm", *engine.start_options, "--entrypoint", "python3", base, "-c", code)
    there = engine.run("run", *arguments).stdout.strip()
    if here != there:
        raise ContainerError(
            f"pip goes through a mirror here and is that of Python {here}, and the image's is {there}; "
            f"set this project up with that Python: make setup PYTHON=python{there.split()[0]}"
        )


def build(ready: Ready, out: Path, tell: Callable[[str], None]) -> str:
    """Build the image; its name.

    Args:
        out: folder for what is kept between builds; log and bentofile go there.

    Raises:
        ContainerError: a step failed; the text has the last line of its log.
    """
    wanted, engine = ready.wanted, ready.engine
    options = ["build-arg=BASE_IMAGE=" + wanted.base]
    if engine.builder != "docker":
        options.append("layers")
    if ready.elsewhere:
        tell(f"packages: pip collects them here, since it has settings of its own ({', '.join(ready.elsewhere)})")
        wheels.collect(ROOT, out / "wheels")
        options += [f"build-context=wheels={out / 'wheels'}", "build-arg=PIP_NO_INDEX=1"]
    bento = _bento(ready, out)
    tag = wanted.tag or bento
    tell(f"bento {bento}; bentoml containerize begins (log: {out / 'build.log'})")
    # BentoML reads its template from a temporary folder, and since 1.4.36 refuses what is not below the working
    # folder (bentoml/BentoML#5566): so the one is the other. Below /var/tmp, since models are copied there.
    place = "/var/tmp" if Path("/var/tmp").is_dir() else None  # noqa: S108  # a folder of its own is made there
    with tempfile.TemporaryDirectory(prefix="stillmotion-", dir=place) as folder:
        command = [sys.executable, "-m", "bentoml", "containerize", bento, "--backend", engine.builder]
        command += ["--image-tag", tag, *(word for option in options for word in ("--opt", option))]
        _logged(
            command, Path(folder), {**engine.environment, "TMPDIR": folder}, out / "build.log", "bentoml containerize"
        )
    return tag


def _bento(ready: Ready, out: Path) -> str:
    """Make the Bento, with the model pinned to its version, or without; its tag."""
    description = yaml.safe_load((ROOT / "bentofile.yaml").read_text(encoding="utf-8"))
    description["models"] = [] if ready.wanted.mounted else [ready.model]
    description["docker"]["base_image"] = ready.wanted.base
    file = out / "bentofile.yaml"
    file.write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag", "--bentofile", str(file), str(ROOT)]
    log = _logged(command, ROOT, {}, out / "bento.log", "bentoml build")
    tags = re.findall(r"__tag__:(\S+)", log)
    if not tags:
        raise ContainerError(f"bentoml build names no Bento (see {out / 'bento.log'})")
    return str(tags[-1])


def _logged(command: list[str], folder: Path, environment: dict[str, str], log: Path, what: str) -> str:
    """Run a command with its output in a file; the output.

    Raises:
        ContainerError: it failed.
    """
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(  # noqa: S603  # our own
            command,
            cwd=folder,
            env={**os.environ, "BENTOML_DO_NOT_TRACK": "true", **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    text = log.read_text(encoding="utf-8", errors="replace")
    if done.returncode:
        raise ContainerError(f"{what} failed: {_reason(text)} (see {log})")
    return text


def _reason(log: str) -> str:
    """The line of a build's log that says why it failed, since BentoML adds a traceback to it."""
    lines = [line.strip() for line in log.splitlines()]
    said = [line for line in lines if line.lower().startswith(("error:", "error building", "valueerror:"))]
    return said[-1] if said else last_line(log)
