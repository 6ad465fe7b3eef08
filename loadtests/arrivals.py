"""When each request is sent. It follows from the seed alone, whatever the number of workers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from laboratory.local.arrivals import Arrival
from routing.files import write_atomically

from .demand import Floats, Rate

_STEP_S = 0.01  # of the integral that even spacing follows; demand does not change faster
_MOST_STEPS = 5_000_000


def thinned(rate: Rate, seconds: float, generator: np.random.Generator) -> Floats:
    """Poisson arrivals whose rate changes (Lewis and Shedler 1979): of those at the highest rate, each stays with the
    probability rate(t) / highest.

    Args:
        rate: over time.
        seconds: for so long.
        generator: of random numbers.
    """
    highest = rate.bound
    # Given their number, arrivals of a Poisson process are uniform.
    times = np.sort(generator.uniform(0.0, seconds, generator.poisson(highest * seconds)))
    stays = generator.uniform(0.0, 1.0, len(times)) * highest < rate.at(times)
    found: Floats = times[stays]
    return found


def even(rate: Rate, seconds: float, start: float) -> Floats:
    """One arrival whenever the integral of the rate has grown by one.

    Args:
        rate: over time.
        seconds: for so long.
        start: part of one that it has grown by at the start, so that regions do not beat in time.
    """
    step = max(_STEP_S, seconds / _MOST_STEPS)
    times = np.arange(0.0, seconds + step, step)
    grown = np.concatenate(([0.0], np.cumsum(rate.at(times[:-1] + step / 2) * np.diff(times))))
    marks = np.arange(1.0 - start, grown[-1], 1.0)
    times = np.interp(marks, grown, times)
    found: Floats = times[times < seconds]
    return found


def schedule(
    rates: Mapping[str, Rate], herds: Mapping[str, Sequence[float]], seconds: float, seed: int, *, spaced: bool = False
) -> list[Arrival]:
    """All requests of a run, in order of time.

    Args:
        rates: by region.
        herds: further times by region.
        seconds: for so long.
        seed: of the draws. Those of a region do not depend on the other regions.
        spaced: at even distances instead of Poisson.
    """
    found = []
    for number, (region, rate) in enumerate(rates.items()):
        generator = np.random.default_rng([seed, number])
        if rate.base <= 0:
            times = np.zeros(0)
        elif spaced:
            times = even(rate, seconds, float(generator.uniform()))
        else:
            times = thinned(rate, seconds, generator)
        together = [at_s for at_s in herds.get(region, ()) if at_s < seconds]
        found += [Arrival(float(at_s), region) for at_s in (*times, *together)]
    return sorted(found)


def part(arrivals: Sequence[Arrival], number: int, count: int) -> list[Arrival]:
    """What one of several workers sends: each `count`-th, so that all have the same load at each moment."""
    return list(arrivals[number::count])


def write_trace(arrivals: Sequence[Arrival], path: Path) -> None:
    """Write them as a trace that `routing simulate` reads (`arrivals.trace`).

    Raises:
        RoutingError: the file cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("scheduled_at_s", "region"))
    rows.writerows((f"{one.at_s:.6f}", one.region) for one in arrivals)
    write_atomically(path, text.getvalue())
