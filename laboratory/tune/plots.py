"""A search as a picture: what each policy cost, and how the best one was come by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..charts import figure, plain, save

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
