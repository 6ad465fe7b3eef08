"""Taking a proxy out before it stops: nobody new comes, and those who are there end."""

from __future__ import annotations

import re
import time
from typing import Protocol

import httpx

from .errors import RoutingError

_ACTIVE = re.compile(r"^http\.edge\.downstream_rq_active: (\d+)$", re.MULTILINE)
_EVERY_S = 0.2


class Drained(Protocol):
    """A proxy that can be taken out: an edge, by `EdgeAdmin`, or a dispatcher, by its runtime socket."""

    def take_out(self) -> None:
        """Make its `/readyz` 503."""

    def in_flight(self) -> int:
        """Return how many requests it has."""


def drain(proxy: Drained, leave_s: float, limit_s: float) -> int:
    """Take a proxy out, give those who look at it time to leave, and wait for the requests in flight.

    Args:
        proxy: that is to stop.
        leave_s: time for load balancers and edges to see it. They may send requests until then, and these are served.
        limit_s: time for requests in flight, from then on.

    Returns:
        Requests that were still in flight at the end: 0, or the limit has passed.

    Raises:
        RoutingError: the proxy does not answer.
    """
    proxy.take_out()
    time.sleep(leave_s)
    end = time.monotonic() + limit_s
    while (left := proxy.in_flight()) and time.monotonic() < end:
        time.sleep(_EVERY_S)
    return left


class EdgeAdmin:
    """The admin page of an edge.

    Args:
        address: host and port.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._client = httpx.Client(base_url=f"http://{address}", timeout=5.0, trust_env=False)

    def take_out(self) -> None:
        self._ask("POST", "/healthcheck/fail")

    def in_flight(self) -> int:
        text = self._ask("GET", r"/stats?filter=^http\.edge\.downstream_rq_active$")
        return sum(int(count) for count in _ACTIVE.findall(text))

    def _ask(self, method: str, path: str) -> str:
        try:
            answer = self._client.request(method, path)
        except httpx.HTTPError as error:
            text = f"the admin page does not answer ({str(error) or type(error).__name__})"
            raise RoutingError(f"{self._address}: {text}") from None
        if answer.is_error:
            text = f"that is no admin page of Envoy: it answers {answer.status_code}"
            raise RoutingError(f"{self._address}: {text}")
        return answer.text
