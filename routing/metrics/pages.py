"""Metrics from the proxies' own pages, all at once, each within the time limit."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Protocol
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from ..data_plane import Place
from ..errors import InputError
from ..fleet import Fleet
from .observation import Kind, Observation, Page, Reading, Sample, ScrapeFailure, ScrapeProblem, Target, Tier, checked
from .prometheus import PrometheusSource
from .proxies import SERIES
from .regions import Regions
from .settings import Pages, PrometheusServer

LONGEST = 4 * 2**20
"""Bytes of a page. An edge's and a dispatcher's have some KB of what is asked for."""

_EDGE_FILTER = (
    r"^cluster\.jobs\.(upstream_rq_(completed|retry)$|zone\..*\.upstream_rq_2xx$)"
    r"|^http\.edge\.downstream_rq_(active|rx_reset)$|^server\.uptime$"
)
"""Of Envoy's own names: an edge's page has 130 KB without it, and 1 KB with it."""
_QUERIES: Mapping[Tier, str] = {
    "dispatcher": "scope=global&scope=backend",  # and none of the GPU servers
    "edge": f"filter={quote(_EDGE_FILTER)}",
}
_PATHS: Mapping[Tier, str] = {"dispatcher": "/metrics", "edge": "/stats/prometheus"}
_LINE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def targets(fleet: Fleet) -> dict[Target, str]:
    """Return each proxy, with the URL of its page: as `metrics.pages` has them, else where the data plane is.

    Raises:
        InputError: those of some region are missing in `metrics.pages`, or this machine has too few ports.
    """
    pages = fleet.metrics.pages or {name: _pages(place) for name, place in fleet.places().items()}
    found: dict[Target, str] = {}
    for region in fleet.names:
        if fleet.regions[region].gpus and not pages.get(region, Pages()).dispatchers:
            raise InputError("is missing", key=f"metrics.pages.{region}.dispatchers")
    for region, known in pages.items():
        of_tiers: tuple[tuple[Tier, tuple[str, ...]], ...] = (("dispatcher", known.dispatchers), ("edge", known.edges))
        for tier, urls in of_tiers:
            for url in urls:
                proxy, page = _target(region, tier, url)
                if proxy in found:  # several behind one address, told apart by path
                    proxy = Target(region, tier, proxy.address + urlsplit(url).path)
                found[proxy] = page
    return found


def _pages(place: Place) -> Pages:
    # An edge's admin page is on its machine's loopback; the page of counters is for other machines.
    edge = f"http://{place.metrics}/metrics" if place.metrics else f"http://{place.admin}"
    return Pages(dispatchers=tuple(f"http://{one.admin}" for one in place.dispatchers), edges=(edge,))


def _target(region: str, tier: Tier, url: str) -> tuple[Target, str]:
    parts = urlsplit(url)
    # Not the whole URL: a password may be in it, and lines about proxies go into logs.
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else str(parts.hostname)
    address = f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    return Target(region, tier, address), url if parts.path else url + _PATHS[tier]


def read_samples(text: str, wanted: Collection[str]) -> Iterator[tuple[str, dict[str, str], float]]:
    """Read Prometheus' text: name, labels and value of the wanted series, as they are written: NaN and negative too.

    Raises:
        ValueError: a line of a wanted series is malformed.
    """
    # prometheus_client reads all of a page, and takes twenty times as long.
    for line in text.splitlines():
        name = line[: min(at for at in (line.find("{"), line.find(" "), len(line)) if at >= 0)]
        if name not in wanted:
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"cannot be read: {line[:80]}")
        yield name, dict(_LABEL.findall(found[2] or "")), float(found[3])


def page_url(proxy: Target, address: str) -> str:
    """Return the URL of what is read of a proxy's page, and of nothing else on it; the address has scheme and port."""
    return f"{address}{_PATHS[proxy.tier]}?{_QUERIES[proxy.tier]}"


def read_page(proxy: Target, at: float, text: str, problems: list[ScrapeProblem]) -> Page:
    """Read a page.

    Args:
        proxy: whose it is.
        at: when it was made, in monotonic seconds.
        text: in Prometheus' format.
        problems: what is wrong with values is added to them.

    Raises:
        ValueError: a line of a wanted series is malformed.
    """
    found = [checked(proxy, *sample) for sample in read_samples(text, SERIES[proxy.tier])]
    problems += [one for one in found if isinstance(one, ScrapeProblem)]
    return Page(proxy, at, tuple(one for one in found if isinstance(one, Sample)))


class PageSource:
    """Asks each proxy for its page.

    Args:
        fleet: with its time limit.
        targets: URL of each proxy's page.
    """

    def __init__(self, fleet: Fleet, targets: Mapping[Target, str]) -> None:
        self._limit_s = fleet.metrics.time_limit_s
        self._urls = {proxy: f"{url}?{_QUERIES[proxy.tier]}" for proxy, url in targets.items()}
        self._session: aiohttp.ClientSession | None = None

    async def read(self) -> Reading:
        """One round. It takes no longer than the time limit, and a little to read what came."""
        if self._session is None:  # it belongs to the event loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
                timeout=aiohttp.ClientTimeout(total=self._limit_s),
                headers={"Accept": "text/plain;version=0.0.4"},
            )
        answers = await asyncio.gather(*(self._ask(self._session, *one) for one in self._urls.items()))
        pages: list[Page] = []
        failures: list[ScrapeFailure] = []
        problems: list[ScrapeProblem] = []
        # Read when all have come: meanwhile no other answer could, and it would be late for nothing.
        for answer in answers:
            if isinstance(answer, ScrapeFailure):
                failures.append(answer)
                continue
            proxy, at, text = answer
            try:
                pages.append(read_page(proxy, at, text, problems))
            except ValueError as error:
                failures.append(ScrapeFailure(proxy, Kind.UNREADABLE, _short(error)))
        return Reading(tuple(pages), tuple(failures), tuple(problems))

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask(
        self, session: aiohttp.ClientSession, proxy: Target, url: str
    ) -> tuple[Target, float, str] | ScrapeFailure:
        try:
            async with asyncio.timeout(self._limit_s):
                try:
                    return await _get(session, proxy, url)
                except aiohttp.ServerDisconnectedError:
                    # A kept connection that the other side was just closing. Nothing is wrong with the proxy.
                    return await _get(session, proxy, url)
        except TimeoutError:
            return ScrapeFailure(proxy, Kind.LATE, f"no answer within {self._limit_s:g} s")
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, ConnectionRefusedError) or "refused" in str(error.os_error).lower():
                return ScrapeFailure(proxy, Kind.REFUSED, "nobody listens there")
            return ScrapeFailure(proxy, Kind.FAILED, _short(error))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return ScrapeFailure(proxy, Kind.FAILED, _short(error))


async def _get(session: aiohttp.ClientSession, proxy: Target, url: str) -> tuple[Target, float, str] | ScrapeFailure:
    started = monotonic()
    async with session.get(URL(url, encoded=True), allow_redirects=False) as answer:
        if answer.status != 200:
            return ScrapeFailure(proxy, Kind.FAILED, f"answers with status {answer.status}")
        at = (started + monotonic()) / 2  # the page was made between question and answer
        body = bytearray()
        async for chunk in answer.content.iter_any():
            body += chunk
            if len(body) > LONGEST:
                return ScrapeFailure(proxy, Kind.UNREADABLE, f"has more than {LONGEST // 2**20} MiB")
    return proxy, at, body.decode("utf-8", errors="replace")


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]


class Source(Protocol):
    """Where pages come from."""

    async def read(self) -> Reading:
        """The newest pages; never later than its time limit, and without an exception for what proxies do."""

    async def close(self) -> None:
        """Give up its connections."""


class Collector:
    """Takes a fleet's metrics.

    Args:
        source: of the pages.
        regions: that know the fleet.
    """

    def __init__(self, source: Source, regions: Regions) -> None:
        self._source, self._regions = source, regions

    async def collect(self) -> Observation:
        """One round. Rates need two: the first knows no demand yet."""
        reading = await self._source.read()
        return self._regions.observe(reading, monotonic())

    async def close(self) -> None:
        """Give up the source's connections."""
        await self._source.close()


def make_collector(fleet: Fleet, base: Path, prometheus: str | None = None) -> Collector:
    """Return the collector that a fleet file asks for.

    Args:
        fleet: with its section `metrics`.
        base: folder that paths of secrets are seen from.
        prometheus: URL to use instead of the file's, with what else the file says of it.

    Raises:
        InputError: no proxy is known, or the URL is none.
    """
    server = fleet.metrics.prometheus
    if prometheus is not None:
        known = {} if server is None else server.model_dump(exclude={"url"})
        try:
            server = PrometheusServer.model_validate({**known, "url": prometheus})
        except ValueError:
            raise InputError(f"{prometheus} is no address such as http://127.0.0.1:9090", key="--prometheus") from None
    if server is not None:
        return Collector(PrometheusSource(fleet, server, base), Regions(fleet))
    found = targets(fleet)
    return Collector(PageSource(fleet, found), Regions(fleet, found))
