# ruff: noqa: INP001  # a script, no package
"""Installs one extra of this project into the environment that runs this script.

uv does it, in a fifth of the time that pip takes. pip fetches uv itself, into a folder that is deleted afterwards, and
what a person has told pip about indexes, proxies and certificates is told to uv. Where that is not enough, pip takes
over. Only the standard library is used: nothing is installed yet.
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
_SETTING = re.compile(r"(global|install|:env:)\.([\w-]+)=(['\"].*)")
_FLAGS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "trusted-host": "--allow-insecure-host",
}
"""uv's names of pip's settings that say where packages come from."""
_OWN_INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")


def install(extra: str) -> int:
    """Install `.[extra]` at the locked versions; gives an exit status."""
    began, what = time.monotonic(), ["install", "-c", "constraints.txt", "-e", f".[{extra}]"]
    # Interrupted, uv leaves packages of which it takes the rest for installed.
    begun = Path(sys.prefix, ".installing")
    again = ["--reinstall"] if begun.exists() else []
    show(f"installing the packages of `{extra}`")
    begun.touch()
    try:
        # Not in the folder for temporary files, from which some machines run no program.
        with tempfile.TemporaryDirectory(prefix="uv-", dir=sys.prefix) as folder:
            status = run(pip("install", "--no-compile", "--target", folder, "--quiet", locked("uv")))
            if not status:
                options, environment = for_uv(pip_settings(), os.environ)
                uv = [str(Path(folder, "bin", "uv")), "pip", *what, "--python", sys.executable, *again, *options]
                status = run(uv, environment)
        if status:
            show("uv cannot install them; pip tries it, which takes longer")
            status = run(pip(*what, "--no-compile"))
    except KeyboardInterrupt:
        show("interrupted; the same command goes on")
        return 130
    if status:
        return status
    begun.unlink()
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
    environment = {name: value for name, value in os.environ.items() if name not in {"PIP_QUIET", "PIP_VERBOSE"}}
    done = subprocess.run(pip("config", "list"), check=False, capture_output=True, text=True, env=environment)  # noqa: S603
    lines = [line.groups() for line in map(_SETTING.fullmatch, done.stdout.splitlines()) if line]
    found: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        found |= {name: str(ast.literal_eval(value)) for where, name, value in lines if where == section}
    return found


def for_uv(of_pip: Mapping[str, str], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return pip's settings as uv has them: options, and the environment.

    Where the environment tells uv itself where packages are, pip's settings have no say in that. Folders that are not
    there are left out: pip warns of them, and uv ends.
    """
    options: list[str] = []
    if not any(name in environment for name in _OWN_INDEXES):
        for name, flag in _FLAGS.items():
            for value in of_pip.get(name, "").split():
                if _is_there(value):
                    options += [flag, _from_home(value)]
        if _is_on(of_pip.get("no-index")):
            options.append("--no-index")
    for path in of_pip.get("constraint", "").split():
        options += ["-c", _from_home(path)]
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # the newest of all indexes, as pip takes it
    certificates = of_pip.get("cert") or environment.get("REQUESTS_CA_BUNDLE") or environment.get("CURL_CA_BUNDLE")
    if certificates:
        found["SSL_CERT_FILE"] = _from_home(certificates)
    elif "SSL_CERT_FILE" not in environment:
        found["UV_SYSTEM_CERTS"] = "1"
    if proxy := of_pip.get("proxy"):
        found |= {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy}
    if _is_on(of_pip.get("no-cache-dir")):
        found["UV_NO_CACHE"] = "1"
    return options, {**environment, **found}


def _is_on(value: str | None) -> bool:
    return (value or "").lower() in {"1", "true", "yes", "on"}


def _from_home(place: str) -> str:
    return str(Path(place).expanduser()) if place.startswith("~") else place


def _is_there(place: str) -> bool:
    url = urlsplit(place)
    if url.scheme == "file":
        return Path(unquote(url.path)).exists()
    return "://" in place or "/" not in place or Path(place).expanduser().exists()


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
