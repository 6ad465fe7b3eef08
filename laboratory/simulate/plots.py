"""A run as a picture: demand, load, where requests stay, and what users feel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..charts import figure, legend, plain, save, style

_MOST_REGIONS = 21


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the time series of a result (`results.results`) as a PNG.

    Raises:
        RoutingError: matplotlib is missing, or the file cannot be written.
    """
    series = result["series"]
    names = list(series["demand_rps"])[:_MOST_REGIONS]
    unit, times = _time_axis(series["time_s"])
    fig = figure(9, 10)
    panels = fig.subplots(5, 1, sharex=True, height_ratios=[1.1, 1, 1, 0.8, 0.8])
    by_region = (
        ("demand_rps", "Requests per second of a region's users", None),
        ("utilisation", "GPUs that compute, of all of the region", 1.05),
        ("home_share", "Share of a region's requests that the table keeps at home", 1.05),
    )
    for axes, (field, title, top) in zip(panels, by_region, strict=False):
        for i, name in enumerate(names):
            axes.plot(times, series[field][name], linewidth=1.3, **style(i))
        plain(axes, title, top=top)
    _line(panels[3], times, [None if one is None else 100 * one for one in series["failure_share"]])
    plain(panels[3], f"Failures, % of requests ({_percent(result['failure_share'])} in all)")
    _line(panels[4], times, series["p95_wait_s"])
    plain(panels[4], f"Wait, 95th percentile, s ({_seconds(result['wait_s']['p95'])} in all)")
    for axes, least in ((panels[3], 1.0), (panels[4], 0.1)):
        axes.set_ylim(0, max(least, axes.get_ylim()[1]))
    panels[4].set_xlabel(f"time, {unit}", fontsize=9)
    if unit == "hours":
        panels[4].xaxis.set_major_locator(_every(3 if times[-1] < 100 else 24))
    fig.suptitle(f"{result['name']}: {result['requests']:,} requests, seed {result['seed']}", x=0.01, ha="left")
    legend(fig, names, panels[0])
    save(fig, path)


def _line(axes: Any, times: list[float], values: list[float | None]) -> None:
    axes.plot(times, [float("nan") if one is None else one for one in values], color="#222222", linewidth=1.3)


def _time_axis(seconds: list[float]) -> tuple[str, list[float]]:
    longest = seconds[-1] if seconds else 0.0
    for unit, size, least in (("hours", 3600.0, 3 * 3600), ("minutes", 60.0, 10 * 60)):
        if longest >= least:
            return unit, [one / size for one in seconds]
    return "seconds", seconds


def _every(hours: int) -> Any:
    from matplotlib.ticker import MultipleLocator

    return MultipleLocator(hours)


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.3g} %"


def _seconds(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g} s"
