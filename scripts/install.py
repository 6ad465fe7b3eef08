# ruff: noqa: INP001  # a script, no package
"""Installs one extra of this project into the environment that runs this script.

uv does it, in a fifth of the time that pip takes. pip fetches uv itself, into a folder that is deleted afterwards, and
what a person has told pip about indexes, proxies and certificates is told to uv. Only the standard library is used:
nothing is installed yet.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
_UV_OF_PIP = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}
"""uv's names of pip's settings."""


def install(extra: str) -> int:
    """Install `.[extra]` at the locked versions; gives an exit status."""
    began = time.monotonic()
    show(f"installing the packages of `{extra}`")
    try:
        with tempfile.TemporaryDirectory(prefix="stillmotion-") as folder:
            status = run(pip("install", "--no-compile", "--target", folder, "--quiet", locked("uv")))
            if not status:
                uv = Path(folder, "bin", "uv")
                what = ["pip", "install", "--python", sys.executable, "-c", "constraints.txt", "-e", f".[{extra}]"]
                status = run([str(uv), *what], os.environ | uv_settings(pip_settings(), os.environ))
    except KeyboardInterrupt:
        show("interrupted; the same command goes on")
        return 130
    if status:
        return status
    leave_out_tests_of_torch()
    show(f"installed after {time.monotonic() - began:.0f} s")
    return 0


def locked(name: str) -> str:
    """Return a package with its version in the lock."""
    found = re.search(rf"^{name}==\S+", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert found, name
    return found[0]


def pip(*arguments: str) -> list[str]:
    """Return a command of this environment's pip."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]


def run(command: list[str], environment: Mapping[str, str] | None = None) -> int:
    """Run a command whose progress is shown on a terminal, and elsewhere what it says if it fails."""
    if sys.stderr.isatty():
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode  # noqa: S603
    done = subprocess.run(  # noqa: S603
        command, cwd=ROOT, env=environment, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.stderr.write(done.stdout)
    return done.returncode


def pip_settings() -> dict[str, str]:
    """Return what a person has told pip, by name; the environment comes before files."""
    done = subprocess.run(pip("config", "list"), check=False, capture_output=True, text=True)  # noqa: S603
    lines = [line.partition("=") for line in done.stdout.splitlines()]
    settings = {name: str(ast.literal_eval(value)) for name, _, value in lines}
    found: dict[str, str] = {}
    for section in ("global.", "install.", ":env:."):
        found |= {name.removeprefix(section): value for name, value in settings.items() if name.startswith(section)}
    return found


def uv_settings(of_pip: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return pip's settings as uv's environment has them, without those that it has already.

    Folders that are not there are left out: pip warns of them, and uv ends.
    """
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # the newest of all indexes, as pip takes it
    for theirs, ours in _UV_OF_PIP.items():
        values = [one for one in of_pip.get(theirs, "").split() if _is_there(one)]
        if values:
            found[ours] = " ".join(values)
    return {name: value for name, value in found.items() if name not in environment}


def _is_there(place: str) -> bool:
    url = urlsplit(place)
    return Path(unquote(url.path)).exists() if url.scheme == "file" or place.startswith(("/", ".")) else True


def leave_out_tests_of_torch() -> None:
    """Delete the programs by which PyTorch is tested: its wheel for Linux brings 130 MB of them, which nothing runs."""
    torch = Path(sysconfig.get_path("platlib"), "torch")
    for program in (*torch.glob("test/*"), *torch.glob("bin/*[Tt]est*")):
        if program.is_file():
            program.unlink()


def show(text: str) -> None:
    """Say where the installation is."""
    sys.stderr.write(f"set-up: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(install(sys.argv[1]))
