# ruff: noqa: INP001  # a script, no package
"""Installs one extra of this project into the environment that runs this script, with a line of progress.

pip alone either says nothing for minutes or prints hundreds of lines, among them warnings about package locations of
the person's own pip configuration that do not exist. Only the standard library is used: nothing is installed yet.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_COLLECTING = re.compile(r"Collecting ([A-Za-z0-9._-]+)")
_BY_TORCH = ("cuda-", "nvidia-", "triton")  # what a build of PyTorch brings along, and one for the CPU does not
_DOWNLOADING = re.compile(r"Downloading (\S+?)-\S+ \(([\d.]+ [MG]B)\)")


def install(extra: str) -> int:
    """Install `.[extra]` at the locked versions; gives pip's exit status.

    The lock names every package, so that pip has nothing to work out: it takes them as they are, in half the time. A
    second look adds what the lock does not have, such as CUDA's libraries where PyTorch comes with them.
    """
    lock = ROOT / ("constraints.txt" if extra == "dev" else f"constraints-{extra}.txt")
    began = time.monotonic()
    show(f"installing the packages of `{extra}`")
    with tempfile.TemporaryDirectory() as folder:
        locked = Path(folder) / "requirements.txt"
        lines = lock.read_text(encoding="utf-8").splitlines(keepends=True)
        locked.write_text("".join(line for line in lines if not line.startswith(_BY_TORCH)), encoding="utf-8")
        for arguments in (["--no-deps", "-r", str(locked)], ["-c", "constraints.txt", "-e", f".[{extra}]"]):
            if status := pip_install(arguments, began):
                return status
    leave_out_tests_of_torch()
    show(f"installed after {time.monotonic() - began:.0f} s")
    return 0


def leave_out_tests_of_torch() -> None:
    """Delete the programs by which PyTorch is tested: its wheel for Linux brings 130 MB of them, which nothing runs."""
    torch = Path(sysconfig.get_path("platlib"), "torch")
    for program in (*torch.glob("test/*"), *torch.glob("bin/*[Tt]est*")):
        if program.is_file():
            program.unlink()


def pip_install(arguments: list[str], began: float) -> int:
    """Run pip with lines of progress; gives its exit status."""
    # Packages are not byte-compiled now: Python does it for those that are ever imported.
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *options, *arguments]
    packages, said = 0, deque[str](maxlen=12)
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
                elif line.startswith("Installing collected packages") and packages > 1:
                    show(f"{packages} packages found, {elapsed}; unpacking them")
        except KeyboardInterrupt:
            pip.terminate()
            show("interrupted; the same command goes on")
            return 130
    if pip.returncode:
        errors = [line for line in said if line.startswith("ERROR")]
        sys.stderr.write("".join(errors or said))
    return pip.returncode


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
