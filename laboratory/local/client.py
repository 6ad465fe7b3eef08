"""Sends requests at their times, and says what became of each."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Self

import aiohttp

from routing.jobs import Jobs

from ..arrivals import Arrival, Outcome
from ..queueing import wilson
from .gpu import GIF

LATE_S = 0.05
"""A request that leaves later than this after its time is counted as late: the sender was too slow, not the fleet."""

_BOUNDARY = "stillmotion"
_FORM = b"".join(
    (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.gif"\r\n'.encode(),
        b"Content-Type: image/gif\r\n\r\n" + GIF,
        f'\r\n--{_BOUNDARY}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na prompt'.encode(),
        f"\r\n--{_BOUNDARY}--\r\n".encode(),
    )
)
_HEADERS = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}


async def send(
    arrivals: Sequence[Arrival],
    edges: Mapping[str, str],
    *,
    path: str = Jobs().paths[0],
    timeout_s: float = 60.0,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    watch: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Send requests, and wait until each has been answered.

    Args:
        arrivals: in any order.
        edges: URL by region, without the path.
        timeout_s: after which a request has failed.
        path: that takes jobs.
        body: a form with picture and prompt; None: the smallest.
        headers: to be added, as an API key.
        watch: is given each outcome as it comes.

    Returns:
        Outcomes in the order of the arrivals' times.
    """
    content = _FORM if body is None else body
    all_headers = {**_HEADERS, **(headers or {})}
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    # No limit: a request that waited for a connection would not be sent at its time. Kept ones are not used again
    # after a second, so that none is just being closed by the edge.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=1.0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=all_headers) as client:
        start = time.monotonic() + 0.05

        async def one(arrival: Arrival) -> Outcome:
            due = start + arrival.at_s
            sent = time.monotonic()
            try:
                async with client.post(edges[arrival.region] + path, data=content) as response:
                    await response.read()
                    found = _outcome(arrival, sent - due, time.monotonic() - due, response)
            except (aiohttp.ClientError, TimeoutError) as error:
                took = time.monotonic() - due
                found = Outcome(arrival.region, arrival.at_s, sent - due, took, 0, problem=type(error).__name__)
            watch(found)
            return found

        tasks = []
        for arrival in sorted(arrivals):
            if (wait_s := start + arrival.at_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            tasks.append(asyncio.create_task(one(arrival)))
        return list(await asyncio.gather(*tasks))


def _outcome(arrival: Arrival, late_s: float, latency_s: float, response: aiohttp.ClientResponse) -> Outcome:
    headers = response.headers
    attempts = headers.get("x-stillmotion-attempts", "")
    return Outcome(
        arrival.region,
        arrival.at_s,
        late_s,
        latency_s,
        response.status,
        headers.get("x-stillmotion-region", "") if response.ok else "",
        int(attempts) if attempts.isdigit() else 0,
        _seconds(headers.get("x-stillmotion-compute-seconds", "")),
        gpu=headers.get("x-stillmotion-gpu", ""),
        request_id=headers.get("x-request-id", ""),
    )


def _seconds(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class Summary:
    """What became of many requests.

    Attributes:
        requests, failures, late: how many.
        statuses: how often each.
        failed_share, failed_low, failed_high: share of failures, and its 95 % interval (Wilson).
        home_share: of those that succeeded, answered by the region of their user.
        served: {source: {region that answered: how many}}.
        attempts: of edges, a request.
        p50_s, p95_s, p99_s: of the latency of those that succeeded.
    """

    requests: int
    failures: int
    late: int
    statuses: Mapping[int, int]
    failed_share: float
    failed_low: float
    failed_high: float
    home_share: float
    served: Mapping[str, Mapping[str, int]]
    attempts: float
    p50_s: float
    p95_s: float
    p99_s: float

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Self:
        found = list(outcomes)
        good = [one for one in found if one.ok]
        failures, count = len(found) - len(good), len(found)
        low, high = wilson(failures, count)
        served: dict[str, Counter[str]] = {}
        for one in good:
            served.setdefault(one.region, Counter())[one.served_by] += 1
        latencies = sorted(one.latency_s for one in good)
        known = [one.attempts for one in found if one.attempts]
        return cls(
            requests=count,
            failures=failures,
            late=sum(one.late_s > LATE_S for one in found),
            statuses=dict(sorted(Counter(one.status for one in found).items())),
            failed_share=failures / count if count else 0.0,
            failed_low=low,
            failed_high=high,
            home_share=sum(one.served_by == one.region for one in good) / len(good) if good else 0.0,
            served={source: dict(row) for source, row in served.items()},
            attempts=sum(known) / len(known) if known else 0.0,
            p50_s=quantile(latencies, 0.50),
            p95_s=quantile(latencies, 0.95),
            p99_s=quantile(latencies, 0.99),
        )


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values, the smallest that so large a share does not exceed; 0 of none."""
    if not values:
        return 0.0
    return values[min(len(values), max(1, ceil(share * len(values)))) - 1]
