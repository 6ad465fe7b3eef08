"""Random fleets, and how far plans for them are from the optimum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from routing.fleet import Fleet, Region, Threshold
from routing.load import Load
from routing.planner.iterative import solve
from routing.planner.problem import Floats, least_cost, state

_RINGS_MS = ((40.0, 90.0, 200.0, 400.0), (15.0, 60.0, 120.0, 400.0), (25.0, 400.0), (400.0,))


@dataclass(frozen=True)
class Costs:
    """Latency cost of one fleet's overflow: sum of requests per second x round trip in ms.

    Attributes:
        overflow_rps: that found a place.
        planned: cost of the iterative plan.
        optimum: least cost for the same overflow of each source and the same reach.
        by_home_load: likewise, where all overflow of a source may use each ring that its load at home unlocks.
        nearest_first: cost of plain nearest first, and `nearest_first_optimum`, of the optimum for its overflow.
    """

    overflow_rps: float
    planned: float
    optimum: float
    by_home_load: float
    nearest_first: float
    nearest_first_optimum: float


def random_case(generator: np.random.Generator, regions: int | None = None) -> tuple[Fleet, Load]:
    """A fleet at a moment when some of it is hot.

    Places are uniform on the inhabited part of the globe or in clusters; one region in twenty has lost all its
    GPUs; demand is 10 to 140 % of capacity, times a factor for the whole fleet.

    Args:
        generator: of the draws.
        regions: how many; 2 to 20 by default.
    """
    count = regions or int(generator.integers(2, 21))
    latitude = np.degrees(np.arcsin(generator.uniform(-0.6, 0.9, count)))
    longitude = generator.uniform(-180, 180, count)
    if generator.random() < 0.5:
        centre = generator.integers(0, max(1, count // 3), count)
        latitude = np.clip(latitude[centre] + generator.normal(0, 6, count), -89, 89)
        longitude = (longitude[centre] + generator.normal(0, 8, count) + 180) % 360 - 180
    rings = _RINGS_MS[generator.integers(len(_RINGS_MS))]
    shares = np.sort(generator.uniform(0.6, 0.99, min(3, len(rings)))).round(3)
    unlocked = np.sort(generator.integers(1, len(rings) + 1, len(shares)))
    gpus = generator.integers(8, 200, count)
    fleet = Fleet(
        regions={
            f"r{i}": Region(gpus=int(gpus[i]), latitude=float(latitude[i]), longitude=float(longitude[i]))
            for i in range(count)
        },
        service_time_s=2.5,
        rings_ms=rings,
        thresholds=tuple(
            Threshold(load=float(share) + i * 1e-3, ring=int(ring))
            for i, (share, ring) in enumerate(zip(shares, unlocked, strict=True))
        ),
        target_load=float(shares[0]),
    )
    ready = np.where(generator.random(count) < 0.05, 0.0, gpus * generator.uniform(0.8, 1.0, count)) / 2.5
    demand = gpus / 2.5 * generator.uniform(0.1, 1.4, count) * generator.choice([0.5, 0.8, 1.0, 1.2])
    names = list(fleet.regions)
    return fleet, Load(
        demand_rps=dict(zip(names, demand.tolist(), strict=True)),
        capacity_rps=dict(zip(names, ready.tolist(), strict=True)),
    )


def compare(generator: np.random.Generator, count: int) -> Iterator[Costs]:
    """Costs of random fleets that have overflow with a place to go to."""
    found = 0
    while found < count:
        fleet, load = random_case(generator)
        problem = state(fleet, load)

        def cost(flow: Floats, latency_ms: Floats = problem.latency_ms) -> float:
            return float((flow * latency_ms).sum())

        flow, nearest = solve(problem).flow, solve(problem, exchange=False).flow
        overflow = flow.sum(axis=1)
        if overflow.sum() <= 1e-3:
            continue
        found += 1
        yield Costs(
            overflow_rps=float(overflow.sum()),
            planned=cost(flow),
            optimum=cost(least_cost(problem, overflow)),
            by_home_load=cost(least_cost(problem, overflow, by_home_load=True)),
            nearest_first=cost(nearest),
            nearest_first_optimum=cost(least_cost(problem, nearest.sum(axis=1))),
        )
