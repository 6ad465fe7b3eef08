"""What changes while a dispatcher runs, through HAProxy's runtime socket: servers, and taking it out before it stops.

A change is made in the running process and in `haproxy.cfg`, so that a restart begins with the same servers.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InputError, RoutingError
from ..files import read_text, write_atomically
from .config import named, server_name
from .files import CONFIG, socket_path

_LIMIT_S = 10.0
_EVERY_S = 0.2
_GPUS, _CANDIDATE, _PAGES = "gpus", "candidate", "pages"  # backends


class Runtime:
    """The runtime socket of one dispatcher.

    Args:
        path: of the socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, folder: Path) -> Runtime:
        """Return the runtime socket of the dispatcher whose files are in a folder."""
        return cls(Path(socket_path(folder.resolve())))

    def ask(self, command: str) -> str:
        """Send one command, and return what HAProxy answers.

        Raises:
            RoutingError: nobody listens there, or the answer does not come.
        """
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.settimeout(_LIMIT_S)
                one.connect(str(self.path))
                one.sendall(command.encode() + b"\n")
                parts = []
                while part := one.recv(65536):
                    parts.append(part)
        except OSError as error:
            raise RoutingError(f"{self.path}: the dispatcher does not answer ({error.strerror or error})") from error
        return b"".join(parts).decode(errors="replace").strip()

    def do(self, command: str, expected: str = "") -> None:
        """Send a command that has nothing to say when it works, or just `expected`.

        Raises:
            RoutingError: HAProxy refuses it, with its words.
        """
        answer = self.ask(command)
        if answer and (not expected or expected not in answer):
            raise RoutingError(f"{self.path}: HAProxy refuses `{command}`: {answer}")

    def take_out(self) -> None:
        """Make the dispatcher's `/readyz` 503: it is about to stop (`routing.proxies.drain`)."""
        self.do("set server switch/ready state maint")

    def in_flight(self) -> int:
        """Return how many requests the dispatcher has, in the line and at servers."""
        rows = [line.split(",") for line in self.ask("show stat").splitlines() if line]
        names = [name.strip("# ") for name in rows[0]]
        current = names.index("scur")
        backends = {_GPUS, _CANDIDATE, _PAGES}
        return sum(int(row[current] or 0) for row in rows[1:] if row[0] in backends and row[1] == "BACKEND")

    def servers(self, backend: str = _GPUS) -> set[str]:
        """Return the names of the GPU servers that the process knows."""
        lines = self.ask(f"show servers state {backend}").splitlines()
        return {line.split()[3] for line in lines[2:] if line}


def set_servers(
    folder: Path, servers: Sequence[str], *, candidates: Sequence[str] = (), drain_s: float = 0.0
) -> set[str]:
    """Give a running dispatcher other GPU servers; those that stay do not notice.

    Args:
        folder: of the dispatcher's files.
        servers: addresses of all its GPU servers from now on.
        candidates: addresses of those with another version of the model, which get their share of the jobs.
        drain_s: time that jobs at servers that go may take to end; 0: they go on, and the server leaves later, when
            this is called again.

    Returns:
        Names of servers that still have a job, and leave when this is called again.

    Raises:
        InputError: the folder has no dispatcher's files, or a server is in both lists.
        RoutingError: the dispatcher does not answer, or refuses a server.
    """
    config = folder / CONFIG
    if not config.is_file():
        raise InputError(f"{folder} has no {CONFIG}; write it with `render`")
    if both := set(servers) & set(candidates):
        raise InputError(f"{', '.join(sorted(both))} cannot have both versions")
    wanted = {
        _GPUS: named(tuple(servers)),
        _CANDIDATE: named(tuple(candidates)),
        _PAGES: named((*servers, *candidates)),
    }
    runtime = Runtime.of(folder)
    text = _with_servers(read_text(config), wanted)
    write_atomically(config, text)
    gone = []
    for backend, those in wanted.items():
        known, options = runtime.servers(backend), _server_options(text, backend)
        for name, address in those.items():
            if name not in known:
                runtime.do(f"add server {backend}/{name} {address} {options}", "New server registered")
                runtime.do(f"enable health {backend}/{name}")
            runtime.do(f"set server {backend}/{name} state ready")
        for name in known - those.keys():
            runtime.do(f"set server {backend}/{name} state maint")
            gone.append((backend, name))
    end = time.monotonic() + drain_s
    while gone := [one for one in gone if not _deleted(runtime, *one)]:
        if time.monotonic() >= end:
            break
        time.sleep(_EVERY_S)
    return {name for _, name in gone}


def drain_server(folder: Path, server: str) -> None:
    """Send a GPU server no further job; the one that it has ends."""
    Runtime.of(folder).do(f"set server {_GPUS}/{server_name(server)} state drain")


def _deleted(runtime: Runtime, backend: str, name: str) -> bool:
    """Delete a server that has no job any more; whether it is gone."""
    # A server with a connection is refused, and stays in maintenance.
    answer = runtime.ask(f"del server {backend}/{name}")
    return not answer or "Server deleted" in answer or "No such server" in answer


def _with_servers(config: str, wanted: Mapping[str, Mapping[str, str]]) -> str:
    """Return a configuration with other servers in its lists of them."""
    for backend, servers in wanted.items():
        before, start, rest = config.partition(f"    # servers of {backend}\n")
        _, end, after = rest.partition("    # end\n")
        if not end:
            raise InputError(f"{CONFIG} has no list of the servers of {backend}; write it anew with `render`")
        text = "".join(f"    server {name} {address}\n" for name, address in servers.items())
        config = before + start + text + end + after
    return config


def _server_options(config: str, backend: str) -> str:
    """Return what `default-server` of a backend says, which servers that are added do not take from it."""
    found = re.search(rf"^backend {backend}\n.*?^    default-server ([^\n]*)$", config, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""
