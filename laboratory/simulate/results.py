"""What came of a run, as JSON has it."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np

from routing.fleet import Fleet

from ..charts import figure, legend, plain, save, style
from .run import Outcome
from .state import Counts, Snapshot, mean, quantile

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def results(outcome: Outcome) -> dict[str, Any]:
    """All of it.

    Returns:
        Without warm-up. `requests` had an end: they were served or failed. `failures`: `refused` by the last
        attempt, or `lost` with the GPU that computed them. `attempts_per_request`: of the edge.
        `in_region_share`: of the served. `wait_s`: all of a served request's time but the computation: delay,
        ways there and back, backoff. `latency_s`: that and the computation. `rings`: of the served. `gpu_hours`:
        that were paid. `price`: of them, where somebody says it. `events` and `events_per_s`: of the whole run,
        warm-up included, by processor time.
        `regions` by name: what happened to its users' requests, and to its GPUs. `series`: at the end of each
        interval, for the interval.
        All but `events_per_s` is the same for the same scenario and seed.
    """
    fleet, scenario = outcome.experiment.fleet, outcome.experiment.scenario
    start, end = outcome.warm, outcome.last
    ended = end.attempts_taken - start.attempts_taken
    flow = end.served_flow - start.served_flow
    lost = int((end.lost - start.lost).sum())
    refused = int((end.failed - start.failed).sum())
    requests = int(ended.sum())
    served = int(flow.sum()) - lost
    return {
        "name": scenario.name,
        "seed": outcome.seed,
        "requests": requests,
        "served": served,
        "failures": refused + lost,
        "failure_share": _ratio(refused + lost, requests),
        "refused": refused,
        "lost": lost,
        "attempts_per_request": _ratio(int((end.tried - start.tried).sum()), requests),
        "attempts_p99": _attempts_quantile(ended.sum(axis=0), 0.99),
        "delayed_share": _ratio(int((end.delayed - start.delayed).sum()), requests),
        "in_region_share": _ratio(int(np.trace(flow)), int(flow.sum())),
        "rings": _rings(fleet, flow),
        "utilisation": _utilisation(outcome),
        "wait_s": _times((end.waits - start.waits).sum(axis=0)),
        "latency_s": _times((end.latencies - start.latencies).sum(axis=0)),
        "tables": outcome.tables,
        "events": end.events,
        "events_per_s": round(end.events / outcome.loop_s) if outcome.loop_s > 0 else None,
        "service_time": outcome.experiment.times.text,
        "gpu_hours": _gpu_hours(outcome),
        "price": _price(outcome),
        "regions": {name: _region(outcome, i) for i, name in enumerate(fleet.names)},
        "series": _series(outcome),
    }


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 9) if whole > 0 else None


def _times(histogram: Counts) -> dict[str, float | None]:
    found = {"mean": mean(histogram)} | {name: quantile(histogram, share) for name, share in _QUANTILES.items()}
    return {name: None if time is None else round(time, 6) for name, time in found.items()}


def _attempts_quantile(jobs: Counts, share: float) -> int | None:
    below = np.cumsum(jobs)
    return int(np.searchsorted(below, share * below[-1])) if below[-1] > 0 else None


def _rings(fleet: Fleet, flow: Counts) -> dict[str, float]:
    found: dict[str, int] = {}
    for i, source in enumerate(fleet.names):
        for j, to in enumerate(fleet.names):
            ring = fleet.ring(source, to)
            key = "beyond" if ring is None else str(ring)
            found[key] = found.get(key, 0) + int(flow[i, j])
    total = max(1, sum(found.values()))
    return {ring: round(jobs / total, 9) for ring, jobs in sorted(found.items()) if jobs}


def _utilisation(outcome: Outcome, region: int | None = None) -> float | None:
    """Part of the GPUs' time that was computed in, from the warm-up to the last arrival."""
    start, end = outcome.warm, outcome.series[-1]
    busy = end.busy_s - start.busy_s
    gpus = np.array([one.gpus for one in outcome.experiment.fleet.regions.values()])
    seconds = end.time_s - start.time_s
    if region is not None:
        return _ratio(float(busy[region]), float(gpus[region]) * seconds)
    return _ratio(float(busy.sum()), float(gpus.sum()) * seconds)


def _region(outcome: Outcome, i: int) -> dict[str, Any]:
    start, end = outcome.warm, outcome.last
    flow = end.served_flow - start.served_flow
    ended = (end.attempts_taken - start.attempts_taken)[i]
    requests = int(ended.sum())
    shares = zip(outcome.experiment.fleet.names, flow[i].tolist(), strict=True)
    return {
        "requests": requests,
        "refused": int(end.failed[i] - start.failed[i]),
        "lost_here": int(end.lost[i] - start.lost[i]),
        "attempts_per_request": _ratio(int(end.tried[i] - start.tried[i]), requests),
        "in_region_share": _ratio(int(flow[i, i]), int(flow[i].sum())),
        "shares": {name: _ratio(jobs, int(flow[i].sum())) for name, jobs in shares if jobs},
        "served_here": int(flow[:, i].sum()),
        "utilisation": _utilisation(outcome, i),
        "wait_s": _times(end.waits[i] - start.waits[i]),
    }


def _series(outcome: Outcome) -> dict[str, Any]:
    names = outcome.experiment.fleet.names
    pairs = list(zip(outcome.series[:-1], outcome.series[1:], strict=True))

    def rates(field: str) -> dict[str, list[float]]:
        by_time = [(getattr(b, field) - getattr(a, field)) / (b.time_s - a.time_s) for a, b in pairs]
        return {name: [round(float(row[i]), 6) for row in by_time] for i, name in enumerate(names)}

    gpus = np.maximum(1, [one.gpus for one in outcome.experiment.fleet.regions.values()])
    used = [(b.busy_s - a.busy_s) / ((b.time_s - a.time_s) * gpus) for a, b in pairs]
    return {
        "time_s": [round(b.time_s, 6) for _, b in pairs],
        "demand_rps": rates("arrived"),
        "served_rps": {
            name: [
                round(float((b.served_flow - a.served_flow)[:, i].sum() / (b.time_s - a.time_s)), 6) for a, b in pairs
            ]
            for i, name in enumerate(names)
        },
        "utilisation": {name: [round(float(row[i]), 6) for row in used] for i, name in enumerate(names)},
        "home_share": {name: [round(row[name], 6) for row in outcome.homes[1:]] for name in names},
        "delay_share": {name: [round(float(b.delay_share[i]), 6) for _, b in pairs] for i, name in enumerate(names)},
        "failure_share": [_interval_failures(a, b) for a, b in pairs],
        "attempts_per_request": [
            _ratio(int((b.tried - a.tried).sum()), int((b.arrived - a.arrived).sum())) for a, b in pairs
        ],
        "servers": _servers(outcome, [b.time_s for _, b in pairs]),
        "p95_wait_s": [quantile((b.waits - a.waits).sum(axis=0), 0.95) for a, b in pairs],
    }


def _gpu_hours(outcome: Outcome) -> dict[str, float]:
    """What was paid, by region, and as a share of all that the fleet file has."""
    hours = outcome.experiment.scenario.duration_s / 3600
    fixed = [region.gpus * hours for region in outcome.experiment.fleet.regions.values()]
    paid = fixed if outcome.paid_s is None else (outcome.paid_s / 3600).tolist()
    by_region = {name: round(one, 3) for name, one in zip(outcome.experiment.fleet.names, paid, strict=True)}
    return {**by_region, "total": round(sum(paid), 3), "of_fixed": round(sum(paid) / sum(fixed), 4)}


def _price(outcome: Outcome) -> dict[str, float] | None:
    """What the servers cost, and as a share of what all of the fleet file's would; None: nobody says what one costs."""
    scaling, regions = outcome.experiment.scenario.scaling, outcome.experiment.fleet.regions.values()
    hour = np.array([(scaling and scaling.price) or region.gpu_hour_price for region in regions])
    fixed = hour * [region.gpus for region in regions] * (outcome.experiment.scenario.duration_s / 3600)
    if not fixed.sum():
        return None
    paid = fixed
    if outcome.paid_s is not None and outcome.spot_s is not None:
        less = 1 - scaling.spot.price if scaling and scaling.spot else 0.0
        paid = hour * (outcome.paid_s - less * outcome.spot_s) / 3600
    return {"total": round(float(paid.sum()), 2), "of_fixed": round(float(paid.sum() / fixed.sum()), 4)}


def _servers(outcome: Outcome, times: list[float]) -> dict[str, list[int]]:
    """Servers that are paid at these moments."""
    names = outcome.experiment.fleet.names
    if not outcome.paid:
        return {name: [outcome.experiment.fleet.regions[name].gpus] * len(times) for name in names}
    moments = [at for at, _ in outcome.paid]
    rows = [outcome.paid[bisect_right(moments, time) - 1][1] for time in times]
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _interval_failures(a: Snapshot, b: Snapshot) -> float | None:
    failed = int((b.failed - a.failed).sum() + (b.lost - a.lost).sum())
    return _ratio(failed, int((b.attempts_taken - a.attempts_taken).sum()))


_MOST_REGIONS = 21


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the time series of a result (`results.results`) as a PNG.

    Raises:
        RoutingError: matplotlib is missing, or the file cannot be written.
    """
    series = result["series"]
    names = list(series["demand_rps"])[:_MOST_REGIONS]
    unit, times = _time_axis(series["time_s"])
    fig = figure(9, 12)
    panels = fig.subplots(6, 1, sharex=True, height_ratios=[1.1, 1, 1, 1, 0.8, 0.8])
    by_region = (
        ("demand_rps", "Requests per second of a region's users", None),
        ("servers", f"GPU servers that are paid ({result['gpu_hours']['total']:,.0f} hours in all)", None),
        ("utilisation", "GPUs that compute, of all of the region", 1.05),
        ("home_share", "Share of a region's requests that the table keeps at home", 1.05),
    )
    for axes, (field, title, top) in zip(panels, by_region, strict=False):
        for i, name in enumerate(names):
            axes.plot(times, series[field][name], linewidth=1.3, **style(i))
        plain(axes, title, top=top)
    _line(panels[4], times, [None if one is None else 100 * one for one in series["failure_share"]])
    plain(panels[4], f"Failures, % of requests ({_percent(result['failure_share'])} in all)")
    _line(panels[5], times, series["p95_wait_s"])
    plain(panels[5], f"Wait, 95th percentile, s ({_seconds(result['wait_s']['p95'])} in all)")
    for axes, least in ((panels[4], 1.0), (panels[5], 0.1)):
        axes.set_ylim(0, max(least, axes.get_ylim()[1]))
    panels[5].set_xlabel(f"time, {unit}", fontsize=9)
    if unit == "hours":
        panels[5].xaxis.set_major_locator(_every(3 if times[-1] < 100 else 24))
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
