"""HAProxy as a service: started with its files, and reloaded without losing a job when these change.

In a pod nobody else would notice that a certificate was renewed or a ConfigMap changed.
"""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from ..console import tell
from ..errors import InputError, RoutingError
from ..files import read_text
from .binary import HAProxy
from .files import CONFIG, PROGRAM, check

_EVERY_S = 2.0
_FILES = re.compile(r"\b(?:crt|ca-file) (\S+)")


def serve(haproxy: HAProxy, folder: Path, every_s: float = _EVERY_S) -> int:
    """Run a dispatcher until it is told to stop.

    SIGTERM and SIGINT make it take no further connection, and end when its jobs have. What it is told while HAProxy
    refuses the new files is written down once, and HAProxy goes on with the old ones.

    Args:
        haproxy: the program.
        folder: of the dispatcher's files.
        every_s: how often the files are looked at.

    Returns:
        HAProxy's exit status.

    Raises:
        InputError: the folder has no dispatcher's files.
        RoutingError: HAProxy refuses them, or does not start.
    """
    config = folder / CONFIG
    if not config.is_file():
        raise InputError(f"{folder} has no {CONFIG}; write it with `render`", key="--folder")
    with tempfile.TemporaryDirectory(prefix="stillmotion-dispatcher-") as running:
        return _run(haproxy, folder, Path(running), every_s)


def _run(haproxy: HAProxy, folder: Path, running: Path, every_s: float) -> int:
    """Run a dispatcher by a copy of its configuration: that of the folder, as it was when HAProxy accepted it."""
    _take(haproxy, folder, running)
    seen = _digest(folder)
    try:
        # A master and a worker: the master starts another worker when it is told to reload.
        master = subprocess.Popen([str(haproxy.path), "-W", "-db", "-f", str(running / CONFIG)])  # noqa: S603
    except OSError as error:
        raise RoutingError(f"{haproxy.path}: cannot be started ({error.strerror})") from error
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: master.send_signal(signal.SIGUSR1))
    try:
        while master.poll() is None:
            _pause(master, every_s)
            found = _digest(folder)
            if found == seen or master.poll() is not None:
                continue
            seen = found
            try:
                _take(haproxy, folder, running)
            except (InputError, RoutingError) as error:
                tell(f"error: {error}; the dispatcher goes on as it was")
                continue
            tell(f"{folder}: files changed; the dispatcher reloads")
            master.send_signal(signal.SIGUSR2)
    finally:
        if master.poll() is None:
            master.kill()
    return master.wait()


def _take(haproxy: HAProxy, folder: Path, running: Path) -> None:
    """Copy the configuration, when HAProxy accepts it: what it reads is what was checked, whoever writes meanwhile."""
    candidate = running / "candidate"
    candidate.mkdir(exist_ok=True)
    (candidate / CONFIG).write_text(read_text(folder / CONFIG), encoding="utf-8")
    check(haproxy, candidate, name=str(folder))
    (candidate / CONFIG).replace(running / CONFIG)


def _pause(master: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while master.poll() is None and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))


def _digest(folder: Path) -> str:
    """Return a digest of all that HAProxy reads; what cannot be read just now counts as empty."""
    found = hashlib.sha256()
    try:
        config = read_text(folder / CONFIG)
    except InputError:
        config = ""
    certificates = [Path(name) for name in _FILES.findall(config)]
    keys = [path.with_suffix(".key") for path in certificates] + [Path(f"{path}.key") for path in certificates]
    for path in (folder / CONFIG, folder / PROGRAM, *certificates, *keys):
        try:
            found.update(path.read_bytes() + b"\0")
        except OSError:
            found.update(b"\0")
    return found.hexdigest()
