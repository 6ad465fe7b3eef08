"""When requests arrive, and what becomes of one: open loop, since users of a slow fleet do not wait for each other.

A region's demand is a rate that is constant piece by piece. Experiments, load tests and traces for the simulator take
their arrivals from here; the simulator draws its own as it goes, by the same rates: a day of a fleet has too many.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routing.files import write_atomically

Floats = NDArray[np.float64]
TRACE_COLUMNS = ("scheduled_at_s", "region")


@dataclass(frozen=True, order=True)
class Arrival:
    """One request.

    Attributes:
        at_s: seconds after the start.
        region: whose user sends it.
        size: of its body, in bytes; 0: any.
    """

    at_s: float
    region: str
    size: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of one request.

    Attributes:
        region: of its user.
        at_s: when it was due, seconds after the start.
        late_s: by how much it left later.
        latency_s: from the moment at which it was due to the last byte of the answer.
        status: of the answer; 0: there was none.
        served_by: region that answered; empty: none.
        attempts: of the edge; 0: it did not say.
        compute_s: that the GPU server says it took; None: it did not.
        away_s: round trip from the user's region to the one that answered; 0 where nobody looked.
        problem: why there was no answer, or why it is none of ours; empty: it is.
        gpu: server that answered, by its own name.
        request_id: by the edge.
    """

    region: str
    at_s: float
    late_s: float
    latency_s: float
    status: int
    served_by: str = ""
    attempts: int = 0
    compute_s: float | None = None
    away_s: float = 0.0
    problem: str = ""
    gpu: str = ""
    request_id: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is an animation."""
        return self.status == 200 and not self.problem

    @property
    def wait_s(self) -> float:
        """All of its time but the computation."""
        return self.latency_s - (self.compute_s or 0.0)


@dataclass(frozen=True)
class Rates:
    """Requests per second of one region.

    Attributes:
        times: (pieces + 1,), in s: piece i is from times[i] to times[i + 1].
        rates: (pieces,)
    """

    times: Floats
    rates: Floats

    @property
    def count(self) -> float:
        """Requests that there are on average."""
        return float(self.rates @ np.diff(self.times))

    def at(self, time: float) -> float:
        """Requests per second at one moment, in s."""
        at = int(np.searchsorted(self.times, time, side="right")) - 1
        return float(self.rates[min(max(at, 0), len(self.rates) - 1)])

    def arrivals(self, generator: np.random.Generator, *, spaced: bool = False) -> Floats:
        """Draw times: those at which the integral of the rate reaches the marks of a process of rate one.

        Args:
            generator: of random numbers.
            spaced: one request whenever the integral has grown by one, instead of Poisson.
        """
        grown = np.concatenate(([0.0], np.cumsum(self.rates * np.diff(self.times))))
        if spaced:  # from a part of one on, so that regions do not beat in time
            marks = np.arange(1.0 - generator.uniform(), grown[-1], 1.0)
        else:  # given their number, marks of a Poisson process are uniform
            marks = np.sort(generator.uniform(0.0, grown[-1], generator.poisson(grown[-1])))
        return np.interp(marks, grown, self.times)


def schedule(
    rates: Mapping[str, Rates], together: Mapping[str, Iterable[float]], seed: int, *, spaced: bool = False
) -> list[Arrival]:
    """Return all requests of a run, in order of time.

    Args:
        rates: by region.
        together: further times, by region.
        seed: of the draws. Those of a region do not depend on the other regions.
        spaced: at even distances instead of Poisson.
    """
    found = []
    for number, (region, rate) in enumerate(rates.items()):
        times = rate.arrivals(np.random.default_rng([seed, number]), spaced=spaced)
        found += [Arrival(float(at_s), region) for at_s in (*times, *together.get(region, ()))]
    return sorted(found)


def poisson(rps: Mapping[str, float], seconds: float, generator: random.Random) -> list[Arrival]:
    """Return requests of many users who know nothing of each other, at a constant rate for each region."""
    found = []
    for region, rate in rps.items():
        at_s = generator.expovariate(rate) if rate > 0 else seconds
        while at_s < seconds:
            found.append(Arrival(at_s, region))
            at_s += generator.expovariate(rate)
    return sorted(found)


def burst(counts: Mapping[str, int], at_s: float = 0.0) -> list[Arrival]:
    """Return so many requests at one moment, by region."""
    return [Arrival(at_s, region) for region, count in counts.items() for _ in range(count)]


def merged(*parts: Iterable[Arrival]) -> list[Arrival]:
    """Return all of them, in their order."""
    return sorted(arrival for part in parts for arrival in part)


def write_trace(arrivals: Sequence[Arrival], path: Path) -> None:
    """Write them, to the microsecond, as `routing simulate --arrivals` reads them.

    Raises:
        RoutingError: the file cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(TRACE_COLUMNS)
    rows.writerows((f"{one.at_s:.6f}", one.region) for one in arrivals)
    write_atomically(path, text.getvalue())
