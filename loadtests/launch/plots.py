"""Where requests were served over time, scenario by scenario."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from laboratory.charts import figure, plain

_HOME, _AWAY, _FAILED = "#0072B2", "#E69F00", "#B3261E"
_COLUMNS = 3


def scenarios_figure(results: Mapping[str, Mapping[str, Any]]) -> Any:
    """A panel a scenario: requests served at home, away and not at all, by the time at which they were due.

    Args:
        results: documents of load tests (`verdict.json`) by scenario.
    """
    rows = -(-len(results) // _COLUMNS)
    columns = min(_COLUMNS, len(results))
    fig = figure(3.6 * columns, 2.4 * rows + 0.4)
    panels = fig.subplots(rows, columns, squeeze=False).flat
    for axes, (name, result) in zip(panels, results.items(), strict=False):
        times, parts = _over_time(result["series"])
        axes.stackplot(times, *parts, colors=(_HOME, _AWAY, _FAILED), labels=("at home", "away", "failed"))
        plain(axes, f"{name}: {result['verdict']}")
        axes.set_xlabel("s", fontsize=8)
    for axes in list(panels):
        axes.set_visible(False)
    handles, labels = fig.axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    fig.suptitle("Requests per second, by where they were served", x=0.01, ha="left", fontsize=11)
    return fig


def _over_time(series: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """Times in s, and requests per second that were served at home, away, and that failed."""
    found: dict[float, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for row in series:
        home = row["served"].get(row["source"], 0)
        one = found[row["at_s"]]
        one[0] += home
        one[1] += sum(row["served"].values()) - home
        one[2] += row["failed"]
    times = sorted(found)
    width = min((b - a for a, b in pairwise(times)), default=1.0)
    return times, [[found[time][part] / width for time in times] for part in range(3)]
