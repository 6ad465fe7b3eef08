"""GPU servers that come and go: a name stands for those that are ready, and is looked up again and again.

A Kubernetes Service without an address of its own (`clusterIP: None`) is such a name.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from ..errors import RoutingError

Resolve = Callable[[str, int], Awaitable[tuple[str, ...]]]
"""Addresses (`host:port`) that a name stands for now; empty: none. Raises RoutingError where that is not known."""

# A name that stands for nothing just now is not told from one that was never there.
_NOBODY = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


async def resolve(name: str, port: int) -> tuple[str, ...]:
    """Look a name up.

    Raises:
        RoutingError: whoever knows names does not answer.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in _NOBODY:
            return ()
        raise RoutingError(f"{name} cannot be looked up ({error.strerror})") from None
    except (OSError, UnicodeError) as error:
        raise RoutingError(f"{name} cannot be looked up ({error})") from None
    hosts = {str(address[0]) for *_, address in found}
    return tuple(sorted(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts))


def name_and_port(text: str) -> tuple[str, int]:
    """The two parts of `gpu:3000`.

    Raises:
        ValueError: it is something else.
    """
    name, _, port = text.rpartition(":")
    if not name or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"{text} is no name with a port, such as gpu:3000")
    return name, int(port)
