# ruff: noqa: INP001  # a script, no package
"""Installs one extra of this project into the environment that runs this script, with a line of progress.

pip alone either says nothing for minutes or prints hundreds of lines, among them warnings about package locations of
the person's own pip configuration that do not exist. Only the standard library is used: nothing is installed yet.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_COLLECTING = re.compile(r"Collecting ([A-Za-z0-9._-]+)")
_DOWNLOADING = re.compile(r"Downloading (\S+?)-\S+ \(([\d.]+ [MG]B)\)")


def install(extra: str) -> int:
    """Install `.[extra]` at the locked versions; gives pip's exit status."""
    # Packages are not byte-compiled now: Python does it for those that are ever imported.
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *options, "-c", "constraints.txt", "-e", f".[{extra}]"]
    began, packages, said = time.monotonic(), 0, deque[str](maxlen=12)
    show(f"installing the packages of `{extra}`")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:  # noqa: S603
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                elapsed = f"{time.monotonic() - began:.0f} s"
                if "is ignored: it is neither a file" not in line:
                    said.append(line)
                if _COLLECTING.match(line):
                    packages += 1
                    show(f"{packages} packages found, {elapsed}", in_place=True)
                elif large := _DOWNLOADING.search(line):
                    show(f"{packages} packages found, {elapsed}: {large[1]}, {large[2]}", in_place=True)
                elif line.startswith("Installing collected packages"):
                    show(f"{packages} packages found, {elapsed}; unpacking them")
        except KeyboardInterrupt:
            pip.terminate()
            show("interrupted; the same command goes on")
            return 130
    if pip.returncode:
        errors = [line for line in said if line.startswith("ERROR")]
        sys.stderr.write("".join(errors or said))
        return pip.returncode
    show(f"installed after {time.monotonic() - began:.0f} s")
    return 0


def show(text: str, *, in_place: bool = False) -> None:
    """Say where the installation is; a line that the next one replaces is shown on a terminal alone."""
    terminal = sys.stderr.isatty()
    if in_place and not terminal:
        return
    line = f"set-up: {text}"
    sys.stderr.write(f"\r{line[:100]:<100}" + ("" if in_place else "\n") if terminal else line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(install(sys.argv[1]))
