"""Metrics from the machines themselves, all at once, each within the time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic
from urllib.parse import quote

import httpx

from ..fleet import Fleet
from . import edges, servers
from .exposition import read_samples
from .oddities import Kind, Oddity
from .reading import Page, Reading, Sample, Silence, sound
from .targets import Machine

LONGEST = 4 * 2**20
"""Bytes of a page. BentoML's has some 50 KB, an edge's 1 KB of what is asked for."""
AT_ONCE = 50
"""Machines that are asked at the same time. Were it all of several hundred, reading the first answers would take so
long that the last ones seem late, on a machine that has other work."""


class DirectSource:
    """Asks each machine for its page.

    Args:
        fleet: with its load metrics and time limit.
        targets: URL of each machine's page.
    """

    def __init__(self, fleet: Fleet, targets: Mapping[Machine, str]) -> None:
        self._limit_s = fleet.metrics.time_limit_s
        self._wanted = {"gpu": servers.series(fleet.metrics.load), "edge": edges.SERIES}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._late: set[Machine] = set()
        certificates = httpx.create_ssl_context()
        self._clients = {
            machine: (
                url,
                # Each machine has a client of its own: a pool looks at all of its connections for each request,
                # which with 300 of them is most of the work.
                httpx.AsyncClient(
                    timeout=self._limit_s,
                    # Kept for less than GPU servers do (5 s), so that it is seldom they who close one.
                    limits=httpx.Limits(max_connections=1, keepalive_expiry=4.0),
                    headers={"Accept": "text/plain;version=0.0.4"},
                    trust_env=False,  # machines of our own are not behind a proxy
                    verify=certificates,
                ),
            )
            for machine, url in targets.items()
        }

    async def read(self) -> Reading:
        """One round. It takes no longer than the time limit, and a little to read what came; the first time that n
        machines are late at once, up to n / AT_ONCE times the limit.
        """
        answers = await asyncio.gather(*(self._ask(one, url, client) for one, (url, client) in self._clients.items()))
        pages: list[Page] = []
        silences: list[Silence] = []
        oddities: list[Oddity] = []
        # Read when all have come: meanwhile no other answer could, and it would be late for nothing.
        for answer in answers:
            if isinstance(answer, Silence):
                silences.append(answer)
                continue
            machine, at, text = answer
            try:
                found = [sound(machine, *sample) for sample in read_samples(text, self._wanted[machine.tier])]
            except ValueError as error:
                silences.append(Silence(machine, Kind.UNREADABLE, _short(error)))
                continue
            oddities += [one for one in found if isinstance(one, Oddity)]
            pages.append(Page(machine, at, tuple(one for one in found if isinstance(one, Sample))))
        return Reading(tuple(pages), tuple(silences), tuple(oddities))

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(client.aclose() for _, client in self._clients.values()))

    async def _ask(self, machine: Machine, url: str, client: httpx.AsyncClient) -> tuple[Machine, float, str] | Silence:
        try:
            async with asyncio.timeout(self._limit_s):
                try:
                    return await _get(machine, url, client)
                except httpx.RemoteProtocolError:
                    # A kept connection that the other side was just closing. Nothing is wrong with the machine.
                    return await _get(machine, url, client)
        except (TimeoutError, httpx.TimeoutException):
            return Silence(machine, Kind.LATE, f"no answer within {self._limit_s:g} s")
        except httpx.HTTPError as error:
            if _refused(error):
                return Silence(machine, Kind.REFUSED, "nobody listens there; it counts as down")
            return Silence(machine, Kind.FAILED, _short(error))


async def _get(machine: Machine, url: str, client: httpx.AsyncClient) -> tuple[Machine, float, str] | Silence:
    # As Envoy filters its hundreds of series; other servers do not mind.
    asked = f"{url}?filter={quote(edges.FILTER)}" if machine.tier == "edge" else url
    started = monotonic()
    async with client.stream("GET", asked) as answer:
        if answer.status_code != httpx.codes.OK:
            return Silence(machine, Kind.FAILED, f"answers with status {answer.status_code}")
        body = bytearray()
        at = (started + monotonic()) / 2  # the page was made between question and answer
        async for part in answer.aiter_bytes():
            body += part
            if len(body) > LONGEST:
                return Silence(machine, Kind.UNREADABLE, f"a page of more than {LONGEST // 2**20} MiB")
    return machine, at, body.decode("utf-8", errors="replace")


def _refused(error: BaseException) -> bool:
    """Whether the connection was refused, which says more than that it failed."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConnectionRefusedError):
            return True
        if isinstance(seen, BaseExceptionGroup):  # one for each address of a name
            return all(_refused(one) for one in seen.exceptions)
        seen = seen.__cause__ or seen.__context__
    return False


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
