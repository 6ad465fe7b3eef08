"""What a search tried and found, as JSON has it."""

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
from ..charts import figure, plain, save
from ..local.under_test import LocalFleet, check
from ..simulate.build import arrivals
from ..simulate.scenario import Arrivals, Experiment
from .goal import Figures, SimulatedFleet, confirm, missed
from .search import CONFIRM_SEEDS, Trial, Tuned, fragment, with_policy


def results(tuned: Tuned, fleet: Fleet) -> dict[str, Any]:
    """As JSON has it.

    Args:
        tuned: what was found.
        fleet: that it is for.

    Returns:
        `goal_met`: by the best policy, and with seeds that the search did not see (`confirmed`). `before`, `best`:
        policy, score, figures by scenario, and by how much of each limit it is missed. `fleet_yaml`: the part of
        `fleet.yaml` to use. `trials`: all that were tried, in order.
    """
    return {
        "goal_met": tuned.holds,
        "seed": tuned.seed,
        "goal": tuned.goal.model_dump(),
        "before": _trial(tuned.before, tuned),
        "best": _trial(tuned.best, tuned),
        "confirmed": {name: [asdict(one) for one in figures] for name, figures in tuned.confirmed.items()},
        "fleet_yaml": fragment(with_policy(fleet, tuned.best.policy)),
        "trials": [
            {"policy": asdict(one.policy), "score": round(one.score, 6), "met": one.met} | _worst(one)
            for one in tuned.trials
        ],
    }


def _trial(trial: Trial, tuned: Tuned) -> dict[str, Any]:
    return {
        "policy": asdict(trial.policy),
        "score": round(trial.score, 6),
        "met": trial.met,
        "figures": {name: asdict(figures) for name, figures in trial.figures.items()},
        "missed": {name: found for name, one in trial.figures.items() if (found := missed(one, tuned.goal))},
    }


def _worst(trial: Trial) -> dict[str, float]:
    """Over the scenarios."""
    figures = list(trial.figures.values())
    return {
        "failure_share": max(one.failure_share for one in figures),
        "mean_wait_s": max(one.mean_wait_s for one in figures),
        "p95_wait_s": max(one.p95_wait_s for one in figures),
        "attempts_per_request": max(one.attempts_per_request for one in figures),
        "in_region_share": min(one.in_region_share for one in figures),
    }


def can_be_confirmed(paths: Sequence[Path], experiments: Sequence[Experiment], seed: int) -> None:
    """See that all scenarios can run on this machine, before a long search.

    Raises:
        InputError: with file and key.
    """
    for path, experiment in zip(paths, experiments, strict=True):
        try:
            check(experiment, arrivals(experiment, seed))
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
        trace=tuple((one.at_s, one.region) for one in arrivals(experiment, seed)),
        times=times,
    )
    runs = [SimulatedFleet().measure(same, fleet, one) for one in range(seeds)]
    return Figures(**{one.name: fmean(getattr(run, one.name) for run in runs) for one in fields(Figures)})


_MET, _MISSED, _BEST = "#0072B2", "#CCCCCC", "#D55E00"


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the trials of a result (`report.results`) as a PNG.

    Raises:
        RoutingError: matplotlib is missing, or the file cannot be written.
    """
    trials = result["trials"]
    fig = figure(11, 4.2)
    cost, course = fig.subplots(1, 2)
    for met, colour, label in ((False, _MISSED, "misses a limit"), (True, _MET, "meets all limits")):
        some = [one for one in trials if one["met"] == met]
        waits, attempts = [one["mean_wait_s"] for one in some], [one["attempts_per_request"] for one in some]
        cost.scatter(waits, attempts, s=16, color=colour, label=f"{label} ({len(some)})", linewidths=0)
    best = min(range(len(trials)), key=lambda i: trials[i]["score"])
    for at, marker, label in ((0, "x", "the fleet's policy"), (best, "*", "the best")):
        one = trials[at]
        place = (one["mean_wait_s"], one["attempts_per_request"])
        cost.scatter(*place, s=140, marker=marker, color=_BEST, label=label, zorder=3)
    plain(cost, "Attempts a request, in the worst scenario")
    cost.set_xlabel("mean wait in the worst scenario, s (log)", fontsize=9)
    _log(cost, "x")
    cost.set_ylim(1, None)
    cost.legend(fontsize=8, frameon=False)
    least = min([0.01, *(0.8 * one["score"] for one in trials if one["score"] > 0)])
    scores: list[float] = [max(least, one["score"]) for one in trials]  # nothing waits: no place on this axis
    so_far: list[float] = []
    for value in scores:
        so_far.append(min(value, so_far[-1]) if so_far else value)
    course.scatter(range(1, len(scores) + 1), scores, s=10, color=_MISSED, label="a policy", linewidths=0)
    course.step(range(1, len(scores) + 1), so_far, where="post", color=_BEST, label="the best so far")
    plain(course, "Score: wait and amplification; 10 and more misses a limit (log)")
    _log(course, "y")
    course.set_ylim(least, None)
    course.set_xlabel("policies tried", fontsize=9)
    course.legend(fontsize=8, frameon=False, loc="center right")
    verdict = "met" if result["goal_met"] else "NOT met"
    fig.suptitle(f"{len(trials)} policies, seed {result['seed']}: the goal is {verdict}", x=0.01, ha="left")
    save(fig, path)


def _log(axes: Any, which: str) -> None:
    """A logarithmic axis with plain numbers, few enough to read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
