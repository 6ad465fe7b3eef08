"""The policy that was found, on a real fleet: whether the goal is met there, and the simulator was right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from routing.console import tell
from routing.errors import InputError
from routing.fleet import Fleet

from .. import service_times as service
from ..local.arrivals import Arrival
from ..local.under_test import LocalFleet, check
from ..simulate.arrivals import arrivals
from ..simulate.experiment import Experiment
from ..simulate.scenario import Arrivals
from .figures import Figures, SimulatedFleet, confirm, missed
from .search import CONFIRM_SEEDS, Tuned
from .space import with_policy


def can_be_confirmed(paths: Sequence[Path], experiments: Sequence[Experiment], seed: int) -> None:
    """See that all scenarios can run on this machine, before a long search.

    Raises:
        InputError: with file and key.
    """
    for path, experiment in zip(paths, experiments, strict=True):
        try:
            check(experiment, [Arrival(at_s, region) for at_s, region in arrivals(experiment, seed)])
        except InputError as error:
            raise error.within(path) from None


def confirmed(experiments: Sequence[Experiment], tuned: Tuned) -> dict[str, Any]:
    """Run each scenario on a real fleet, and the same arrivals through the simulator.

    Returns:
        `real`: by scenario, `met`, what is `missed`, and `figures`, simulated and measured. `goal_met` counts them.
    """
    found: dict[str, Any] = {}
    for experiment in experiments:
        fleet = with_policy(experiment.fleet, tuned.best.policy)
        tell(f"{experiment.scenario.name}: on a real fleet, {experiment.scenario.duration_s:.0f} s")
        local = LocalFleet()
        measured = local.measure(experiment, fleet, tuned.seed)
        misses = missed(measured, tuned.goal)
        rows = confirm(simulated(experiment, fleet, tuned.seed, local.busy_s), measured)
        found[experiment.scenario.name] = {
            "met": not misses,
            "missed": misses,
            "figures": [asdict(row) for row in rows],
        }
    return {"real": found, "goal_met": tuned.holds and all(one["met"] for one in found.values())}


def simulated(experiment: Experiment, fleet: Fleet, seed: int, busy_s: float, seeds: int = CONFIRM_SEEDS) -> Figures:
    """The same arrivals through the simulator: the mean over its other draws.

    Args:
        experiment: scenario.
        fleet: with its policy.
        seed: of the arrivals.
        busy_s: how long a job keeps a server busy, as measured: a little longer than the job itself.
        seeds: of its other draws.
    """
    longer = busy_s / experiment.times.mean_s if busy_s > 0 else 1.0
    atoms = experiment.times.atoms
    times = service.exponential(busy_s) if atoms is None else service.measured((atoms * longer).tolist(), "as measured")
    same = replace(
        experiment,
        scenario=experiment.scenario.model_copy(update={"arrivals": Arrivals()}),
        trace=tuple(arrivals(experiment, seed)),
        times=times,
    )
    runs = [SimulatedFleet().measure(same, fleet, one) for one in range(seeds)]
    return Figures(**{one.name: fmean(getattr(run, one.name) for run in runs) for one in fields(Figures)})
