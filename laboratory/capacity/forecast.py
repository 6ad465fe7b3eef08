"""What demand will be: a trend of weeks, and the shape of a week, tried out on the last weeks of the history.

    demand(week w, hour h) = shape[h] * exp(a + b w)

Level and trend of a region are robust (Theil and Sen's slope of the logarithms of its weeks' levels, from SciPy), and
its shape is a median over weeks, so that a campaign of the past is not expected again. What is planned (`launches`)
comes on top; `growth` does not, since the trend is in its place. How wrong that is follows from the past: from each
week on, the next one is forecast and compared with what came.

statsforecast would bring pandas, statsmodels and a dozen more packages for models of a single series; a few weeks of
history hold no more than this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import theilslopes

from routing.fleet import Fleet

from .history import History
from .planning import HOURS, Planning, Week, launch_factors
from .sizing import size

LEAST_WEEKS = 4
"""Of a history, whole ones: two to learn from, and two to try the forecast on."""
QUANTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_FIRST = 2
_BUSY = 0.9
"""Errors count in a region's busiest tenth of hours: GPUs are bought for those."""
_HOURS_BEFORE_1970 = 72


@dataclass(frozen=True)
class Forecast:
    """A week of the future.

    Attributes:
        rps: (168, regions), the median.
        growth: (regions,), factor from week to week.
        deviation: of the logarithm of what came over what was forecast, a week ahead, in busy hours.
        errors: mean of |what came / forecast - 1|, a week ahead: of all hours, and of regions' busiest hours.
        tried: weeks that were forecast to find that.
    """

    rps: NDArray[np.float64]
    growth: NDArray[np.float64]
    deviation: float
    errors: tuple[float, float]
    tried: int


def forecast(history: History, weeks_ahead: int) -> Forecast | None:
    """Forecast a week; None where the history is too short, or has no demand to compare.

    Args:
        history: of the past.
        weeks_ahead: 1 for the week after its last whole one.
    """
    past = whole_weeks(history)  # (weeks, 168, regions)
    if len(past) < LEAST_WEEKS:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.stack([past[n] / _ahead(past[:n], 1)[0] for n in range(_FIRST, len(past))])
    ratios[~np.isfinite(ratios) | (ratios <= 0)] = np.nan
    if np.isnan(ratios).all():
        return None
    busy = past[_FIRST:] >= np.nanquantile(past[_FIRST:], _BUSY, axis=1, keepdims=True)
    peaks = np.where(busy, ratios, np.nan)
    rps, growth = _ahead(past, weeks_ahead)
    errors = float(np.nanmean(np.abs(ratios - 1))), float(np.nanmean(np.abs(peaks - 1)))
    return Forecast(rps, growth, float(np.sqrt(np.nanmean(np.log(peaks) ** 2))), errors, len(ratios))


def whole_weeks(history: History) -> NDArray[np.float64]:
    """Return (weeks, 168, regions), the highest demand of each hour from Monday 0 h UTC; NaN where nothing is known."""
    start_s = history.start.timestamp()
    hours = np.floor((start_s + history.interval_s * np.arange(len(history.rps))) / 3600 + 1e-9).astype(np.int64)
    first = np.flatnonzero(np.diff(hours, prepend=hours[0] - 1))
    highest = np.fmax.reduceat(history.rps, first, axis=0)
    count = len(first) // HOURS
    last = highest[len(first) - count * HOURS :].reshape(count, HOURS, highest.shape[1])
    begins = int(hours[first[len(first) - count * HOURS]]) + _HOURS_BEFORE_1970 if count else 0
    return np.roll(last, begins % HOURS, axis=1)


def gpus(
    found: Forecast, weeks_ahead: int, fleet: Fleet, planning: Planning, service_s: float
) -> dict[str, dict[str, int]]:
    """Return GPUs by quantile of the demand and region, as a plan finds them; an error grows as sqrt(weeks ahead)."""
    factor = planning.peak_within * launch_factors(planning.launches, fleet)
    result = {}
    for name, share in QUANTILES.items():
        higher = np.exp(NormalDist().inv_cdf(share) * found.deviation * sqrt(weeks_ahead))
        rps = found.rps * higher * factor
        week = Week(fleet.names, rps, found.rps.mean(axis=0), found.rps, ())
        sized = size(fleet, week, planning, service_s)
        result[name] = dict(zip(fleet.names, map(int, sized.gpus), strict=True))
    return result


def results(history: History, fleet: Fleet, planning: Planning, service_s: float) -> dict[str, Any]:
    """Return the forecast as JSON has it; without enough history, the reason."""
    ahead = planning.forecast_weeks
    found = forecast(history, ahead)
    if found is None:
        weeks = len(whole_weeks(history))
        why = f"the whole weeks of the history are {weeks}, and a forecast takes {LEAST_WEEKS}"
        if weeks >= LEAST_WEEKS:
            why = "the last weeks of the history have no demand to compare with that of those before"
        note = f"{why}; its peak counts"
        return {"weeks_ahead": ahead, "note": note}
    by_quantile = gpus(found, ahead, fleet, planning, service_s)
    return {
        "weeks_ahead": ahead,
        "note": "",
        "growth_per_week": {name: round(float(g), 4) for name, g in zip(fleet.names, found.growth, strict=True)},
        "backtest": {
            "weeks": found.tried,
            "error": round(found.errors[0], 4),
            "error_in_busy_hours": round(found.errors[1], 4),
            "deviation": round(found.deviation, 4),
        },
        "gpus": {name: {**one, "total": sum(one.values())} for name, one in by_quantile.items()},
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Return the forecast for people."""
    if found["note"]:
        return [f"No forecast: {found['note']}."]
    tried, growth = found["backtest"], found["growth_per_week"]
    text = ", ".join(f"{name} {100 * (factor - 1):+.1f} %" for name, factor in growth.items())
    head = f"Forecast, {found['weeks_ahead']} weeks after the history; growth a week: {text}"
    errors = f"{100 * tried['error']:.1f} % in an hour, {100 * tried['error_in_busy_hours']:.1f} % in the busiest"
    rows = [
        f"{name} of the demand: {one['total']} GPUs ("
        + ", ".join(f"{region} {count}" for region, count in one.items() if region != "total")
        + ")"
        for name, one in found["gpus"].items()
    ]
    return [head, f"each of the last {tried['weeks']} weeks, forecast from those before it, was off by {errors}", *rows]


def _ahead(past: NDArray[np.float64], weeks_ahead: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the week so far after the last of (weeks, 168, regions), and the growth of each region."""
    shape = np.nanmedian(past, axis=0)  # (168, regions)
    number = np.arange(len(past))
    rps, growth = np.zeros_like(shape), np.ones(shape.shape[1])
    for region in range(shape.shape[1]):
        known = shape[:, region] > 0
        if not known.any():
            continue  # nobody was ever there
        level = np.nanmedian(past[:, known, region] / shape[known, region], axis=1)
        slope, intercept = theilslopes(np.log(np.maximum(level, 1e-9)), number)[:2]
        fitted = np.exp(intercept + slope * number)
        own = np.nanmedian(past[:, :, region] / fitted[:, None], axis=0)
        rps[:, region] = own * np.exp(intercept + slope * (len(past) - 1 + weeks_ahead))
        growth[region] = np.exp(slope)
    return rps, growth
