"""What a search tried and found, as JSON has it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from routing.fleet import Fleet

from .figures import missed
from .search import Trial, Tuned
from .space import fragment, with_policy


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
