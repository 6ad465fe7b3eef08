"""Ports on loopback for the servers of tests.

Each is given once: a server binds its port long after it was chosen. They lie below those of `fleet up`, which reserves
its own from 21,000, and those that the kernel gives to outgoing connections. Processes of one run share them out.
"""

import itertools
import os
import random
import socket

_FIRST, _LAST = 10_000, 20_999


def _mine():
    process, count = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    ports = range(_FIRST + int(process.removeprefix("gw")), _LAST + 1, int(count))
    start = random.SystemRandom().randrange(len(ports))  # another run on this machine begins elsewhere
    return itertools.cycle([*ports[start:], *ports[:start]])


_PORTS = _mine()


def listening() -> socket.socket:
    """A socket that listens."""
    for port in itertools.islice(_PORTS, _LAST - _FIRST):
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            continue
    raise RuntimeError("no free port")


def free_port() -> int:
    """A port at which nobody listens, and which no other server of these tests is given."""
    with listening() as found:
        return found.getsockname()[1]


def free_ports(count: int) -> list[int]:
    """Likewise, several."""
    return [free_port() for _ in range(count)]
