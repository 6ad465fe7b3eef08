"""A plan of capacity as pictures: the week, the GPUs, what they depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from routing.errors import RoutingError

from ..charts import figure, plain, save, style
from .planning import HOURS
from .report import CapacityPlan

_BLUE, _GREY, _RED, _GREEN, _ORANGE = "#0072B2", "#BBBBBB", "#D55E00", "#009E73", "#E69F00"


def plot(plan: CapacityPlan, folder: Path) -> list[Path]:
    """Draw `week.png` and `gpus.png`, and with sensitivity `sensitivity.png`.

    Args:
        plan: with all it holds.
        folder: made where it is missing.

    Raises:
        RoutingError: matplotlib is missing, or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RoutingError(f"{folder}: cannot be made ({error.strerror})") from error
    drawn = {"week.png": week_figure(plan), "gpus.png": gpus_figure(plan)}
    if plan.service_rows:
        drawn["sensitivity.png"] = sensitivity_figure(plan)
    for name, fig in drawn.items():
        save(fig, folder / name)
    return [folder / name for name in drawn]


def week_figure(plan: CapacityPlan) -> Any:
    """Demand and capacity over the week, a panel a region."""
    names = plan.fleet.names
    columns = 1 if len(names) <= 6 else 2 if len(names) <= 12 else 4
    rows = -(-len(names) // columns)
    fig = figure(min(16, 4 + 5 * columns), 1.2 + 1.6 * rows)
    panels = fig.subplots(rows, columns, sharex=True, squeeze=False)
    hours = np.arange(HOURS)
    threshold = plan.fleet.thresholds[0].load
    for i, name in enumerate(names):
        axes = panels[i // columns][i % columns]
        capacity = plan.sized.with_loss[i] / plan.service_s
        axes.fill_between(hours, plan.week.past_rps[:, i], step="post", color=_GREY, alpha=0.6, linewidth=0)
        axes.step(hours, plan.week.rps[:, i], where="post", color=_BLUE, linewidth=1.4)
        axes.axhline(capacity, color=_RED, linewidth=1.4)
        axes.axhline(threshold * capacity, color=_RED, linewidth=1.0, linestyle="--")
        plain(axes, f"{name}: {plan.sized.with_loss[i]} GPUs in service", top=max(1.0, 1.15 * capacity))
        axes.set_xlim(0, HOURS)
        axes.set_xticks(range(0, HOURS, 24), ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"], ha="left")
    for spare in range(len(names), rows * columns):
        panels[spare // columns][spare % columns].set_axis_off()
    handles = [
        axes.fill_between([], [], color=_GREY, alpha=0.6, linewidth=0),
        axes.plot([], [], color=_BLUE)[0],
        axes.plot([], [], color=_RED)[0],
        axes.plot([], [], color=_RED, linestyle="--")[0],
    ]
    labels = ["the history's demand", "demand planned for", "capacity in service", f"{100 * threshold:g} % of it"]
    fig.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    fig.suptitle(f"{plan.planning.name}: requests per second by hour of the week (UTC)", x=0.01, ha="left")
    return fig


def gpus_figure(plan: CapacityPlan) -> Any:
    """GPUs by region and what they are for."""
    names, sized = plan.fleet.names, plan.sized
    fig = figure(9, 1.8 + 0.45 * len(names))
    axes = fig.subplots()
    places = np.arange(len(names))[::-1]
    parts = (
        ("own peak", sized.alone, _BLUE),
        ("loss of another region", sized.with_loss - sized.alone, _ORANGE),
        ("margin", sized.gpus - sized.with_loss, _GREY),
    )
    left = np.zeros(len(names))
    for label, count, colour in parts:
        axes.barh(places, count, left=left, color=colour, label=label, height=0.6)
        left += count
    now = [region.gpus for region in plan.fleet.regions.values()]
    axes.plot(now, places, "|", color="#222222", markersize=18, markeredgewidth=1.6, label="fleet file")
    for place, total in zip(places, sized.gpus.tolist(), strict=True):
        axes.annotate(f" {total}", (total, place), va="center", fontsize=9, xytext=(4, 0), textcoords="offset points")
    axes.set_yticks(places, names)
    plain(axes, f"GPUs, {int(sized.gpus.sum())} in all")
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(0, 1.1 * max(1, *sized.gpus.tolist(), *now))
    fig.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    fig.suptitle(plan.planning.name, x=0.01, ha="left")
    return fig


def sensitivity_figure(plan: CapacityPlan) -> Any:
    """GPUs over service time, and failures over load by attempts."""
    cases = list(dict.fromkeys(row.case for row in plan.retry_rows))
    fig = figure(4.4 * (1 + len(cases)), 3.8)
    panels = fig.subplots(1, 1 + len(cases), squeeze=False)[0]
    axes = panels[0]
    axes.plot([row.service_s for row in plan.service_rows], [row.gpus for row in plan.service_rows], "o-", color=_BLUE)
    plain(axes, "GPUs in all")
    axes.set_xlabel("mean service time, s", fontsize=9)
    axes.set_xlim(0)
    most = max([0.01, *(row.failure_share for row in plan.retry_rows)])
    for axes, case in zip(panels[1:], cases, strict=True):
        for i, attempts in enumerate(sorted({row.attempts for row in plan.retry_rows})):
            rows = [row for row in plan.retry_rows if row.case == case and row.attempts == attempts]
            label = f"{attempts} attempts" if attempts > 1 else "no retry"
            line = [100 * row.failure_share for row in rows]
            axes.plot([100 * row.load for row in rows], line, marker="o", label=label, **style(i))
        plain(axes, f"{case}: failures, %", top=110 * most)
        axes.set_xlabel("demand, % of the plan", fontsize=9)
        axes.legend(loc="upper left", fontsize=8, frameon=False)
    fig.suptitle(f"{plan.planning.name}: what the plan depends on", x=0.01, ha="left")
    return fig
