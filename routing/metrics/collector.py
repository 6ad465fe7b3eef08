"""A round of metrics: ask the source, aggregate by region."""

from __future__ import annotations

from time import monotonic
from typing import Protocol

from ..fleet import Fleet
from .direct import DirectSource
from .observation import Observation
from .prometheus import PrometheusSource
from .reading import Reading
from .regions import Regions
from .targets import targets


class Source(Protocol):
    """Where pages come from."""

    async def read(self) -> Reading:
        """The newest pages; never later than its time limit, and without an exception for what machines do."""

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


def make_collector(fleet: Fleet, prometheus: str | None = None) -> Collector:
    """The collector that a fleet file asks for.

    Args:
        fleet: with its section `metrics`.
        prometheus: URL to use instead.

    Raises:
        InputError: no machine is known.
    """
    if (url := prometheus or fleet.metrics.prometheus) is not None:
        return Collector(PrometheusSource(fleet, url.rstrip("/")), Regions(fleet))
    found = targets(fleet)
    return Collector(DirectSource(fleet, found), Regions(fleet, found))
