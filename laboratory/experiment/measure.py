"""Runs the cases: a fleet each, several fleets at a time, the loads one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from routing.console import tell

from ..local.arrivals import Arrival, burst, poisson
from ..local.client import Outcome, Summary, send
from ..local.launch import Options, Started, running
from ..local.under_test import stand_ins
from .cases import BURSTS, CAPACITY_RPS, LOADS, REGIONS, Case, fleet_of

_SETTLE_S = 2.0


@dataclass(frozen=True)
class Effort:
    """How long everything is measured.

    Attributes:
        seconds: of each load.
        warm_s: of traffic before it that is not counted, in which the control loop sees it.
        bursts: of each size.
        fleets: at a time. An Envoy takes three of the 128 inotify instances that Linux gives a user.
    """

    seconds: float
    warm_s: float
    bursts: int
    fleets: int


FULL = Effort(seconds=100.0, warm_s=20.0, bursts=4, fleets=2)
QUICK = Effort(seconds=5.0, warm_s=3.0, bursts=1, fleets=2)


@dataclass(frozen=True)
class Cell:
    """One case at one load, or in bursts of one size.

    Attributes:
        load: share of the capacity; None for bursts.
        burst: requests at once; None for a load.
        summary: of the requests.
        gpu_attempts: requests that reached a GPU server, refused ones too, for each of the users'.
    """

    load: float | None
    burst: int | None
    summary: Summary
    gpu_attempts: float


@dataclass(frozen=True)
class Measured:
    """A case and what was counted of it."""

    case: Case
    cells: list[Cell]


def measure(cases: tuple[Case, ...], effort: Effort, seed: int) -> list[Measured]:
    """Run all cases.

    Raises:
        RoutingError: a fleet does not start.
    """
    found: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="stillmotion-experiment-") as root:
        for begin in range(0, len(cases), effort.fleets):
            group = cases[begin : begin + effort.fleets]
            for case in group:
                tell(case.name)
            found += _together(group, Path(root) / str(begin), effort, seed)
    return found


def _together(group: tuple[Case, ...], root: Path, effort: Effort, seed: int) -> list[Measured]:
    """Several fleets at once: they have nothing in common but the processors, which they leave idle mostly."""
    with contextlib.ExitStack() as stack:
        fleets = []
        for number, case in enumerate(group):
            folder = root / str(number)
            options = Options(prometheus="no", seed=seed, alone=False)
            fleets.append(stack.enter_context(running(fleet_of(case), folder / "fleet.yaml", folder, options)))
        cells = asyncio.run(_all(fleets, effort, seed))
    return [Measured(case, each) for case, each in zip(group, cells, strict=True)]


async def _all(fleets: list[Started], effort: Effort, seed: int) -> list[list[Cell]]:
    return await asyncio.gather(*(_one(fleet, effort, seed) for fleet in fleets))


async def _one(fleet: Started, effort: Effort, seed: int) -> list[Cell]:
    cells = []
    for load in LOADS:
        generator = random.Random(f"{seed} {load}")  # noqa: S311  # the same arrivals for each case
        rps = dict.fromkeys(REGIONS, load * CAPACITY_RPS / len(REGIONS))
        arrivals = poisson(rps, effort.warm_s + effort.seconds, generator)
        cells.append(await _cell(fleet, arrivals, effort.warm_s, load=load))
    for size in BURSTS:
        counts = dict.fromkeys(REGIONS, size // len(REGIONS))
        outcomes: list[Outcome] = []
        before = await _attempts(fleet)
        for _ in range(effort.bursts):
            outcomes += await send(burst(counts), fleet.edges)
            await asyncio.sleep(_SETTLE_S)
        attempts = await _attempts(fleet) - before
        cells.append(Cell(None, size, Summary.of(outcomes), attempts / len(outcomes)))
    return cells


async def _cell(fleet: Started, arrivals: list[Arrival], warm_s: float, load: float) -> Cell:
    before = await _attempts(fleet)
    outcomes = await send(arrivals, fleet.edges)
    attempts = await _attempts(fleet) - before
    await asyncio.sleep(_SETTLE_S)
    counted = [one for one in outcomes if one.at_s >= warm_s]
    return Cell(load, None, Summary.of(counted), attempts / len(outcomes))


async def _attempts(fleet: Started) -> int:
    """Requests that GPU servers have had."""
    return sum(sum(page["requests"].values()) for page in await stand_ins(fleet))
