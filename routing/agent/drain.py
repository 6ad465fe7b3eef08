"""Taking a proxy out before it stops: nobody new comes, and those who are there end."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import httpx

from ..errors import RoutingError

_ACTIVE = re.compile(r"^http\.edge\.downstream_rq_active: (\d+)$", re.MULTILINE)
_EVERY_S = 0.2


def drain(
    admin: str,
    leave_s: float,
    limit_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Make its `/readyz` 503, give those who look at it time to leave, and wait for the requests in flight.

    Args:
        admin: address of its admin page.
        leave_s: time for load balancers and edges to see it. They may send requests until then, and these are served.
        limit_s: time for requests in flight, from then on.
        sleep, clock: of this machine.

    Returns:
        Requests that were still in flight at the end: 0, or the limit has passed.

    Raises:
        RoutingError: the admin page does not answer.
    """
    try:
        with httpx.Client(base_url=f"http://{admin}", timeout=5.0, trust_env=False) as client:
            client.post("/healthcheck/fail").raise_for_status()
            sleep(leave_s)
            end = clock() + limit_s
            while (active := _active(client)) and clock() < end:
                sleep(_EVERY_S)
            return active
    except httpx.HTTPStatusError as error:
        text = f"that is no admin page of Envoy: it answers {error.response.status_code}"
        raise RoutingError(f"{admin}: {text}") from None
    except httpx.HTTPError as error:
        raise RoutingError(f"{admin}: the admin page does not answer ({str(error) or type(error).__name__})") from None


def _active(client: httpx.Client) -> int:
    answer = client.get("/stats", params={"filter": r"^http\.edge\.downstream_rq_active$"})
    answer.raise_for_status()
    return sum(int(count) for count in _ACTIVE.findall(answer.text))
