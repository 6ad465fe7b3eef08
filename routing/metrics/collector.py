"""A round of metrics: ask the source, aggregate by region."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Protocol

from ..errors import InputError
from ..fleet import Fleet
from .observation import Observation
from .pages import PageSource, targets
from .prometheus import PrometheusSource
from .reading import Reading
from .regions import Regions
from .settings import PrometheusServer


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
