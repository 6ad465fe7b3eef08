"""Demand of a scenario over time: rates that are constant piece by piece, and jobs at given times."""

from __future__ import annotations

import math

import numpy as np

from routing.errors import InputError
from routing.fleet import Fleet
from routing.retries import longest_backoff_s
from routing.schema import MOST

from ..arrivals import Floats, Rates
from .scenario import Arrivals, Day, Experiment, Trace

STEPS_A_DAY = 1440
"""Curves of a day are steps of a minute; demand changes by 0.3 % in one at most."""
MOST_REQUESTS, MOST_WAITING = 100_000_000, 10_000_000
"""Of one simulation: minutes of computation, and a gigabyte."""
MOST_PIECES = 10_000_000
"""Of demand that is constant piece by piece, in all regions."""


def rates(arrivals: Arrivals, fleet: Fleet, seconds: float, service_s: float) -> dict[str, Rates]:
    """Demand by region, without bursts and traces.

    Args:
        arrivals: of a scenario.
        fleet: that it meets.
        seconds: for so long.
        service_s: mean time of a job, which loads are shares of.
    """
    found = {}
    for name, region in fleet.regions.items():
        load = arrivals.region_load.get(name, arrivals.load)
        changes = [one for one in arrivals.changes if not one.regions or name in one.regions]
        edges = {0.0, seconds}
        edges |= {time for one in changes for time in (one.at_s, one.until_s or seconds) if time < seconds}
        if arrivals.day is not None:
            edges |= set(np.arange(0.0, seconds, arrivals.day.length_s / STEPS_A_DAY).tolist())
        times = np.array(sorted(edges))
        middle = (times[:-1] + times[1:]) / 2
        rate = np.full(len(middle), arrivals.rps.get(name, load * region.gpus / service_s))
        if arrivals.day is not None:
            rate *= day_curve(arrivals.day, fleet, name, middle)
        for one in changes:
            rate[(middle >= one.at_s) & (middle < (one.until_s or seconds))] *= one.factor
        found[name] = Rates(times, rate)
    return found


def rates_of(experiment: Experiment) -> dict[str, Rates]:
    """Demand of an experiment; see `rates`."""
    scenario = experiment.scenario
    return rates(scenario.arrivals, experiment.fleet, scenario.duration_s, experiment.times.mean_s)


def day_curve(day: Day, fleet: Fleet, region: str, times: Floats) -> Floats:
    """Demand as a share of the peak's.

    Args:
        day: the curve.
        fleet: whose region it is.
        region: its longitude / 15 is its hour, where the curve does not say otherwise.
        times: s from the start of the scenario.
    """
    offset = day.utc_offset.get(region, (fleet.regions[region].longitude or 0.0) / 15)
    hours = day.starts_at + offset + times * 24 / day.length_s
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
    day = scenario.arrivals.day
    if day is not None and (pieces := len(fleet.names) * seconds / day.length_s * STEPS_A_DAY) > MOST_PIECES:
        text = f"{seconds:g} is {pieces:.3g} minutes of all regions' days, and {MOST_PIECES:,} are the most"
        raise InputError(text, key="duration_s")
    together = sum(burst.jobs for burst in scenario.arrivals.bursts)
    demand = rates_of(experiment)
    requests = sum(one.count for one in demand.values()) + together + len(experiment.trace)
    if requests > MOST_REQUESTS:
        raise InputError(f"{requests:.3g} requests in {seconds:g} s; {MOST_REQUESTS:,} are the most", key="arrivals")
    waits = fleet.retry.delay.max_s + sum(longest_backoff_s(fleet.retry))
    over = sum(max(0.0, float(one.rates.max()) - capacity[name]) for name, one in demand.items())
    waiting = min(requests, over * waits + together)
    if waiting > MOST_WAITING:
        text = f"up to {waiting:.3g} jobs would wait at once; {MOST_WAITING:,} are the most"
        raise InputError(f"{text}, and {over:.3g} requests per second are more than GPUs compute", key="arrivals")


def given_times(arrivals: Arrivals, trace: Trace, seconds: float) -> dict[str, Floats]:
    """Bursts and traces, by region, in order of time; a region without has none."""
    found: dict[str, list[float]] = {}
    for time, region in trace:
        found.setdefault(region, []).append(time)
    for burst in arrivals.bursts:
        times = burst.at_s + np.arange(burst.jobs) * (burst.over_s / burst.jobs)
        found.setdefault(burst.region, []).extend(times[times <= seconds].tolist())
    return {region: np.array(sorted(times)) for region, times in found.items()}
