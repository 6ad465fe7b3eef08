"""Demand of a scenario over time: rates that are constant piece by piece, and jobs at given times."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routing.errors import InputError
from routing.fleet import Fleet
from routing.retries import Waits
from routing.schema import MOST

from .scenario import Day, Experiment

DAY_STEP_S = 60.0
"""Curves of a day are steps of a minute; demand changes by 0.3 % in one at most."""
_DAY_S = 86_400.0
MOST_REQUESTS, MOST_WAITING = 100_000_000, 10_000_000
"""Of one simulation: minutes of computation, and a gigabyte."""
MOST_PIECES = 10_000_000
"""Of demand that is constant piece by piece, in all regions."""


@dataclass(frozen=True)
class Rates:
    """Requests per second of one region.

    Attributes:
        times: (pieces + 1,), in s: piece i is from times[i] to times[i + 1].
        rates: (pieces,)
    """

    times: NDArray[np.float64]
    rates: NDArray[np.float64]

    def mean(self) -> float:
        """Over the whole time."""
        return float((self.rates * np.diff(self.times)).sum() / (self.times[-1] - self.times[0]))

    def at(self, time: float) -> float:
        """At one moment, in s."""
        at = int(np.searchsorted(self.times, time, side="right")) - 1
        return float(self.rates[min(max(at, 0), len(self.rates) - 1)])


def base_rps(experiment: Experiment) -> dict[str, float]:
    """Demand before days and changes, by region."""
    arrivals, fleet, mean_s = experiment.scenario.arrivals, experiment.fleet, experiment.times.mean_s
    return {
        name: arrivals.rps.get(name, arrivals.region_load.get(name, arrivals.load) * region.gpus / mean_s)
        for name, region in fleet.regions.items()
    }


def rates(experiment: Experiment) -> dict[str, Rates]:
    """Demand by region, without bursts and traces."""
    scenario = experiment.scenario
    arrivals, end = scenario.arrivals, scenario.duration_s
    base, found = base_rps(experiment), {}
    for name in experiment.fleet.names:
        changes = [one for one in arrivals.changes if not one.regions or name in one.regions]
        edges = {0.0, end}
        edges |= {time for one in changes for time in (one.at_s, one.until_s or end) if time < end}
        if arrivals.day is not None:
            edges |= set(np.arange(0.0, end, DAY_STEP_S).tolist())
        times = np.array(sorted(edges))
        middle = (times[:-1] + times[1:]) / 2
        rate = np.full(len(middle), base[name])
        if arrivals.day is not None:
            rate *= day_curve(arrivals.day, experiment.fleet, name, middle)
        for one in changes:
            rate[(middle >= one.at_s) & (middle < (one.until_s or end))] *= one.factor
        found[name] = Rates(times, rate)
    return found


def day_curve(day: Day, fleet: Fleet, region: str, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Demand as a share of the peak's.

    Args:
        day: the curve.
        fleet: whose region it is.
        region: its longitude / 15 is its hour, where the curve does not say otherwise.
        times: s from the start of the scenario.
    """
    offset = day.utc_offset.get(region, (fleet.regions[region].longitude or 0.0) / 15)
    hours = day.starts_at + offset + times * 24 / _DAY_S
    phase = (1 + np.cos((hours - day.peak_hour) * (math.pi / 12))) / 2
    # Rounded, since cosines differ in the last digit from machine to machine.
    return np.round(day.trough + (1 - day.trough) * phase, 9)


def check_size(experiment: Experiment) -> None:
    """See that a simulation of it fits into memory and has an end, before anything is drawn.

    Raises:
        InputError: it has too many requests, jobs that wait at once, or changes of demand.
    """
    scenario, fleet = experiment.scenario, experiment.fleet
    mean_s, seconds = experiment.times.mean_s, scenario.duration_s
    capacity = {name: region.gpus / mean_s for name, region in fleet.regions.items()}
    if (most := max(capacity.values())) > MOST:
        text = f"{mean_s:g} s lets a region compute {most:g} requests per second; {MOST:g} is the most"
        raise InputError(text, key="service_time.mean_s")
    if scenario.arrivals.day is not None and (pieces := len(fleet.names) * seconds / DAY_STEP_S) > MOST_PIECES:
        text = (
            f"{seconds:g} is {pieces:.3g} minutes of all regions, and {MOST_PIECES:,} are the most with a day's curve"
        )
        raise InputError(text, key="duration_s")
    together = sum(burst.jobs for burst in scenario.arrivals.bursts)
    demand = rates(experiment)
    requests = sum(one.mean() for one in demand.values()) * seconds + together + len(experiment.trace)
    if requests > MOST_REQUESTS:
        raise InputError(f"{requests:.3g} requests in {seconds:g} s; {MOST_REQUESTS:,} are the most", key="arrivals")
    waits = fleet.retry.delay.max_s + Waits.of(fleet.retry).total_longest_s
    over = sum(max(0.0, float(one.rates.max()) - capacity[name]) for name, one in demand.items())
    waiting = min(requests, over * waits + together)
    if waiting > MOST_WAITING:
        text = f"up to {waiting:.3g} jobs would wait at once; {MOST_WAITING:,} are the most"
        raise InputError(f"{text}, and {over:.3g} requests per second are more than GPUs compute", key="arrivals")


def given_times(experiment: Experiment) -> dict[str, NDArray[np.float64]]:
    """Bursts and traces, by region, in order of time; a region without has none."""
    scenario = experiment.scenario
    found: dict[str, list[float]] = {}
    for time, region in experiment.trace:
        found.setdefault(region, []).append(time)
    for burst in scenario.arrivals.bursts:
        times = burst.at_s + np.arange(burst.jobs) * (burst.over_s / burst.jobs)
        found.setdefault(burst.region, []).extend(times[times <= scenario.duration_s].tolist())
    return {region: np.array(sorted(times)) for region, times in found.items()}
