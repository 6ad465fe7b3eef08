"""When requests arrive: open loop, since users of a slow fleet do not wait for each other."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Arrival:
    """One request.

    Attributes:
        at_s: seconds after the start.
        region: whose user sends it.
    """

    at_s: float
    region: str


def poisson(rps: Mapping[str, float], seconds: float, generator: random.Random, start_s: float = 0.0) -> list[Arrival]:
    """Requests of many users who know nothing of each other.

    Args:
        rps: requests per second, by region.
        seconds: for so long.
        generator: of random numbers.
        start_s: when it begins.
    """
    found = []
    for region, rate in rps.items():
        at_s = generator.expovariate(rate) if rate > 0 else seconds
        while at_s < seconds:
            found.append(Arrival(start_s + at_s, region))
            at_s += generator.expovariate(rate)
    return sorted(found)


def burst(counts: Mapping[str, int], at_s: float = 0.0) -> list[Arrival]:
    """So many requests at one moment, by region."""
    return [Arrival(at_s, region) for region, count in counts.items() for _ in range(count)]


def merged(*parts: Iterable[Arrival]) -> list[Arrival]:
    """All of them, in their order."""
    return sorted(arrival for part in parts for arrival in part)
