"""Every command of the pages, run as it stands there, each page from top to bottom in a copy of the repository."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import PAGES, ROOT, blocks

LIMIT_S = 1800
RUN = [page for page in PAGES if any(block.is_run for block in blocks(page))]

# What a reader brings.
CHECKPOINTS = ("path/to/checkpoint", "path/to/i2vgen-xl")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S + 60)]

_WAIT = """
wait_for() {
  for _ in $(seq 300); do
    if curl --silent --fail --output /dev/null "$1"; then return; fi
    if ! kill -0 "$2" 2>/dev/null; then echo "the server has ended" >&2; return 1; fi
    sleep 0.5
  done
  echo "nothing answers at $1" >&2; return 1
}
"""


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """A store with the shipped teacher, which each page gets a copy of."""
    home = tmp_path_factory.mktemp("store")
    command = [sys.executable, "-m", "pipeline", "package", "--checkpoint", "pipeline/embedded/teacher"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "BENTOML_HOME": str(home)}, check=True, capture_output=True)
    return home


@pytest.fixture
def workspace(tmp_path, packaged):
    """The repository as a clone has it after `make setup`, and what a reader brings."""
    folder = tmp_path / "stillmotion"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    environment = folder / ".venv"
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != ".ready":
            (environment / entry.name).symlink_to(entry)
    (environment / ".ready").touch()
    shutil.copy(folder / "assets" / "balloon.png", folder / "photo.jpg")
    for name in CHECKPOINTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(folder / "pipeline" / "embedded" / "teacher")
    shutil.copytree(packaged, tmp_path / "bentoml")
    return folder


def script_of(page):
    """The page's blocks as one script, as a reader would type them into one terminal, and a second for servers."""
    lines = [_WAIT, "servers=", "trap 'for one in $servers; do kill $one; wait $one; done' EXIT"]
    for block in blocks(page):
        if not block.is_run:
            continue
        lines.append(f"echo {shlex.quote(f'== {block}')} >&2")
        if block.language == "python":
            lines += ["python - <<'END_OF_PYTHON'", block.text.rstrip(), "END_OF_PYTHON"]
        elif block.served_at is None:
            lines.append(block.text.rstrip())
        else:
            (command,) = block.commands()
            lines += [f"{command} &", 'servers="$servers $!"', f"wait_for {block.served_at} $!"]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", RUN, ids=[page.name for page in RUN])
def test_the_commands_of_a_page_do_what_it_says(page, workspace, tmp_path):
    environment = {
        **os.environ,
        "BENTOML_HOME": str(tmp_path / "bentoml"),
        "PATH": f"{workspace / '.venv' / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(workspace),
    }
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        environment.pop(name, None)
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            ["bash", "-eu", "-o", "pipefail", "-c", script_of(page)],
            cwd=workspace,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            status = f"not done after {LIMIT_S} s"
    said = log.read_text(errors="replace")
    assert status == 0, f"{status}\n{said[-4000:]}"
