"""The highest load at which a fleet keeps its objectives: one number, by bisection over the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .results import results
from .run import simulate
from .scenario import Arrivals, Experiment

_LEAST, _MOST = 1 / 64, 64.0
_PRECISION = 0.02


@dataclass(frozen=True)
class Goal:
    """What has to hold.

    Attributes:
        failures: largest share of the requests that may fail.
        wait_jobs: largest 95th percentile of the wait, in mean times of a job.
    """

    failures: float = 0.001
    wait_jobs: float = 1.0

    def met(self, found: Mapping[str, Any], mean_s: float) -> bool:
        """Whether a result (`results.results`) keeps it."""
        p95_s = found["wait_s"]["p95"] or 0.0
        return (found["failure_share"] or 0.0) <= self.failures and p95_s <= self.wait_jobs * mean_s


def highest_load(experiment: Experiment, goal: Goal, seed: int | None = None) -> dict[str, Any]:
    """Find the largest factor of the scenario's demand at which the goal is met, to 2 %.

    Args:
        experiment: whose `load`, `region_load` and `rps` are scaled; bursts and traces stay.
        goal: what has to hold.
        seed: the same for all runs.

    Returns:
        `factor`; None: at no demand. `utilisation`, `failure_share` and `p95_wait_s` there; `runs`.
    """
    runs = 0

    def at(factor: float) -> dict[str, Any] | None:
        nonlocal runs
        runs += 1
        arrivals = scaled(experiment.scenario.arrivals, factor)
        scenario = experiment.scenario.model_copy(update={"arrivals": arrivals})
        found = results(simulate(replace(experiment, scenario=scenario), seed))
        return found if goal.met(found, experiment.times.mean_s) else None

    low, high, best = 0.0, 1.0, at(1.0)
    if best is not None:
        low = 1.0
        while (found := at(2 * low)) is not None and low < _MOST:
            low, best = 2 * low, found
        high = 2 * low
    while high - low > _PRECISION * high and high > _LEAST:
        middle = (low + high) / 2
        if (found := at(middle)) is not None:
            low, best = middle, found
        else:
            high = middle
    if best is None:
        return {"factor": None, "runs": runs}
    figures = {"utilisation": best["utilisation"], "failure_share": best["failure_share"]}
    return {"factor": round(low, 4), **figures, "p95_wait_s": best["wait_s"]["p95"], "runs": runs}


def scaled(arrivals: Arrivals, factor: float) -> Arrivals:
    """Return demand times a factor; bursts and traces stay."""
    by_region = {
        key: {name: one * factor for name, one in getattr(arrivals, key).items()} for key in ("region_load", "rps")
    }
    return arrivals.model_copy(update={"load": arrivals.load * factor, **by_region})
