"""Packages for the image by way of this machine's pip, where that goes through a mirror, a proxy or folders.

What pip is told here (`pip config list`, variables `PIP_*`) is right for this machine: addresses of an inner network,
folders, certificates, passwords. None of it belongs into an image. So pip collects the wheels here, in a folder that
the build sees while it installs them, and the image's own pip is not told of any index.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

from .engine import last_line
from .errors import ContainerError
from .packages import packages

# Of `pip config list`: what says that packages do not come from PyPI by the straight way.
_ELSEWHERE = ("index-url", "extra-index-url", "find-links", "no-index", "proxy", "cert", "client-cert", "trusted-host")


def goes_elsewhere(configuration: str) -> list[str]:
    """Names of the settings in the output of `pip config list` that lead pip elsewhere than straight to PyPI."""
    names = {line.partition("=")[0].rpartition(".")[2].replace("_", "-") for line in configuration.splitlines()}
    return [name for name in _ELSEWHERE if name in names]


def pip_configuration() -> str:
    """Output of `pip config list`."""
    return _pip("config", "list").stdout


def collect(root: Path, folder: Path) -> None:
    """Collect the wheels of the extras `serve` and `deploy`, at the lock's versions; at once if they are there.

    Raises:
        ContainerError: pip cannot get one of them.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*packages(project, "serve"), *packages(project, "deploy")]
    lock = root / "constraints.txt"
    stamp = hashlib.sha256("\n".join([lock.read_text(encoding="utf-8"), sys.version, *wanted]).encode()).hexdigest()
    done = folder / "collected"
    if done.is_file() and done.read_text(encoding="utf-8") == stamp:
        return
    folder.mkdir(parents=True, exist_ok=True)
    got = _pip("wheel", "--quiet", "--wheel-dir", str(folder), "--constraint", str(lock), *wanted)
    if got.returncode:
        raise ContainerError(f"pip cannot get the image's packages: {last_line(got.stderr)}")
    done.write_text(stamp, encoding="utf-8")


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own
