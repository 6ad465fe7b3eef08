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
_GPUS, _PAGES = "gpus", "pages"  # backends


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
        return sum(int(row[current] or 0) for row in rows[1:] if row[:2] in (["gpus", "BACKEND"], ["pages", "BACKEND"]))

    def servers(self, backend: str = _GPUS) -> set[str]:
        """Return the names of the GPU servers that the process knows."""
        lines = self.ask(f"show servers state {backend}").splitlines()
        return {line.split()[3] for line in lines[2:] if line}


def set_servers(folder: Path, servers: Sequence[str], *, drain_s: float = 0.0) -> None:
    """Give a running dispatcher other GPU servers; those that stay do not notice.

    Args:
        folder: of the dispatcher's files.
        servers: addresses of all its GPU servers from now on.
        drain_s: time that jobs at servers that go may take to end; 0: they go on, and the server leaves later, when
            this is called again.

    Raises:
        InputError: the folder has no dispatcher's files.
        RoutingError: the dispatcher does not answer, or refuses a server.
    """
    config = folder / CONFIG
    if not config.is_file():
        raise InputError(f"{folder} has no {CONFIG}; write it with `render`")
    wanted, runtime = named(tuple(servers)), Runtime.of(folder)
    write_atomically(config, _with_servers(read_text(config), wanted))
    known = {backend: runtime.servers(backend) for backend in (_GPUS, _PAGES)}
    text = read_text(config)
    for backend in (_GPUS, _PAGES):
        options = _server_options(text, backend)
        for name, address in wanted.items():
            if name not in known[backend]:
                runtime.do(f"add server {backend}/{name} {address} {options}", "New server registered")
                runtime.do(f"enable health {backend}/{name}")
            runtime.do(f"set server {backend}/{name} state ready")
    gone = known[_GPUS] - wanted.keys()
    for backend in (_GPUS, _PAGES):
        for name in known[backend] - wanted.keys():
            runtime.do(f"set server {backend}/{name} state maint")
    end = time.monotonic() + drain_s
    while gone := {name for name in gone if not _deleted(runtime, name)}:
        if time.monotonic() >= end:
            break
        time.sleep(_EVERY_S)


def drain_server(folder: Path, server: str) -> None:
    """Send a GPU server no further job; the one that it has ends."""
    Runtime.of(folder).do(f"set server {_GPUS}/{server_name(server)} state drain")


def _deleted(runtime: Runtime, name: str) -> bool:
    """Delete a server that has no job any more; whether it is gone."""
    # A server with a connection is refused, and stays in maintenance.
    for backend in (_PAGES, _GPUS):
        answer = runtime.ask(f"del server {backend}/{name}")
        if answer and "Server deleted" not in answer and "No such server" not in answer:
            return False
    return True


def _with_servers(config: str, servers: Mapping[str, str]) -> str:
    """Return a configuration with other servers in its two lists of them."""
    text = "".join(f"    server {name} {address}\n" for name, address in servers.items())
    for backend in (_GPUS, _PAGES):
        before, start, rest = config.partition(f"    # servers of {backend}\n")
        _, end, after = rest.partition("    # end\n")
        config = before + start + text + end + after
    return config


def _server_options(config: str, backend: str) -> str:
    """Return what `default-server` of a backend says, which servers that are added do not take from it."""
    found = re.search(rf"^backend {backend}\n.*?^    default-server ([^\n]*)$", config, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""
