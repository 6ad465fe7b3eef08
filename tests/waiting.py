"""Waiting, and asking a server, at little cost: what waits shares its processors with what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import httpx

Found = TypeVar("Found")

LIMIT_S = 120
"""How long something may take on a machine that has other work."""

HTTP = httpx.Client(
    timeout=600,
    verify=False,  # noqa: S501  # nothing here has a certificate
    trust_env=False,
    limits=httpx.Limits(max_keepalive_connections=0),
)
"""Asks servers on loopback, each time by a new connection. A client of its own for each question (`httpx.get`) reads
the certificates of all authorities each time, which takes longer than most answers.
"""


def until(condition: Callable[[], Found], what: object = "it holds", limit_s: float = LIMIT_S) -> Found:
    """Wait for a condition, and give its value.

    Args:
        what: what is waited for; a function that tells it, with what helps to find out why it did not come.
    """
    end, pause = time.monotonic() + limit_s, 0.01
    while not (value := condition()):
        assert time.monotonic() < end, f"waited in vain until {what() if callable(what) else what}"
        time.sleep(pause)
        pause = min(0.1, 1.2 * pause)
    return value


def status_of(url: str, timeout: float = 30) -> int | None:
    """Return the status of a page; None where nobody answers."""
    try:
        return HTTP.get(url, timeout=timeout).status_code
    except httpx.TransportError:
        return None
