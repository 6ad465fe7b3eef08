"""A dispatcher's folder: its configuration, its Lua program, links to its certificate, and HAProxy's check of them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path, PurePath

from ..data_plane import Dispatcher, seen_from
from ..errors import RoutingError
from ..files import write_atomically
from ..fleet import Fleet
from .binary import HAProxy
from .config import LUA, Settings, dispatcher_config

CONFIG, PROGRAM, SOCKET = "haproxy.cfg", "dispatcher.lua", "haproxy.sock"
CERTIFICATE, KEY, AUTHORITY = "peers.pem", "peers.pem.key", "authority.pem"
_LONGEST_SOCKET = 90  # bytes of a path; HAProxy adds some while it binds, and the kernel ends at 107
_LIMIT_S = 60.0


def dispatcher_folder(root: Path, region: str, number: int = 1) -> Path:
    """Return the folder of a region's dispatcher; the first is number 1."""
    return root / region / ("dispatcher" if number == 1 else f"dispatcher-{number}")


def socket_path(folder: PurePath) -> PurePath:
    """Return where a dispatcher's runtime socket is: in its folder, or elsewhere if that path is too long for one."""
    path = folder / SOCKET
    if len(os.fsencode(path)) <= _LONGEST_SOCKET:
        return path
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return PurePath(tempfile.gettempdir()) / f"stillmotion-{digest}.sock"


def write_dispatcher(
    folder: Path,
    fleet: Fleet,
    region: str,
    dispatcher: Dispatcher,
    *,
    base: Path = Path(),
    seen_at: PurePath | None = None,
    emulate_latency: bool = False,
) -> None:
    """Write the files of one dispatcher. Those that are as they were are left alone.

    Args:
        folder: to write to.
        fleet: with its data plane.
        region: where the dispatcher is.
        dispatcher: one of the region's.
        base: folder that the paths of certificates are seen from: the fleet file's.
        seen_at: where HAProxy will find `folder`; None: where it is.
        emulate_latency: delay requests by the round trip to the region they come from.

    Raises:
        RoutingError: a file cannot be written.
    """
    at = seen_at or folder.resolve()
    mutual = fleet.data_plane.mutual_tls
    if mutual is not None:
        # HAProxy looks for a key beside its certificate, by name; so both get names that fit.
        for name, path in ((CERTIFICATE, mutual.certificate), (KEY, mutual.key), (AUTHORITY, mutual.ca)):
            _link(folder / name, seen_from(base, path))
        mutual = mutual.model_copy(
            update={"certificate": str(at / CERTIFICATE), "key": str(at / KEY), "ca": str(at / AUTHORITY)}
        )
    settings = Settings(
        region=region,
        address=dispatcher.address,
        admin=dispatcher.admin,
        folder=at,
        socket=socket_path(at),
        servers=dispatcher.servers,
        certificate=mutual,
        emulate_latency=emulate_latency,
    )
    for path, text in texts(fleet, settings).items():
        _write(folder / path, text)


def texts(fleet: Fleet, settings: Settings) -> dict[str, str]:
    """Return the text of a dispatcher's files, by name."""
    return {CONFIG: dispatcher_config(fleet, settings), PROGRAM: LUA}


def check(haproxy: HAProxy, folder: Path, name: str = "") -> None:
    """Have HAProxy check a dispatcher's files; `name` is what an error calls them, in place of the folder.

    Raises:
        RoutingError: it refuses them, with the folder and HAProxy's words.
    """
    name = name or str(folder)
    command = [str(haproxy.path), "-c", "-f", str(folder / CONFIG)]
    try:
        done = subprocess.run(  # noqa: S603  # the program that was found, on a file of ours
            command, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RoutingError(f"{name}: HAProxy could not check it: {error}") from error
    if done.returncode:
        raise RoutingError(f"{name}: HAProxy refuses it: {_words(done.stdout + done.stderr)}")


def _words(output: str) -> str:
    """Return the lines of HAProxy's output that say what is wrong, without severity and process."""
    found = re.findall(r"^\[(?:ALERT|WARNING)\]\s+\(\d+\) : (.*)$", output, re.MULTILINE)
    return "; ".join(found)[:1000] or " ".join(output.split())[:1000] or "it does not say why"


def _link(path: Path, to: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() and path.readlink() == to:
            return
        path.unlink(missing_ok=True)
        path.symlink_to(to)
    except OSError as error:
        raise RoutingError(f"{path}: cannot be written ({error.strerror})") from error


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.read_bytes() == text.encode():
            return
    except OSError as error:
        raise RoutingError(f"{path}: cannot be written ({error.strerror})") from error
    write_atomically(path, text)
