"""A plan of capacity, as JSON has it, with all that it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from routing.fleet import Fleet

from ..queueing import erlang_b
from ..service_times import ServiceTimes, of_benchmark
from .history import History, read_history
from .sensitivity import RetryRow, ServiceRow, to_retries, to_service_time
from .settings import Planning
from .sizing import Sized, size
from .week import Week, hour_name, planned_week

_HOURS_A_MONTH = 730.0


@dataclass(frozen=True)
class CapacityPlan:
    """All of it.

    Attributes:
        fleet, planning, history, week: what was given, and what became of it.
        times: of service, in production.
        sized: GPUs.
        service_rows, retry_rows, retry_note: sensitivity; without it none.
    """

    fleet: Fleet
    planning: Planning
    history: History
    week: Week
    times: ServiceTimes
    sized: Sized
    service_rows: tuple[ServiceRow, ...] = ()
    retry_rows: tuple[RetryRow, ...] = ()
    retry_note: str = ""

    @property
    def service_s(self) -> float:
        """Mean time of a request on a GPU in production, in s."""
        return self.times.mean_s * self.planning.service_time_factor


def plan_capacity(
    traffic: Path, fleet: Fleet, benchmark: Path, planning: Planning, *, sensitivity: bool = True, seed: int = 0
) -> CapacityPlan:
    """From files to a plan.

    Args:
        traffic: history, CSV or Parquet.
        fleet: regions, distances, thresholds, retries.
        benchmark: of the model.
        planning: what for.
        sensitivity: also find what the plan depends on, which takes longer than the plan.
        seed: of the simulations.

    Raises:
        InputError: a file cannot be used.
    """
    planning.check(fleet)
    times = of_benchmark(benchmark, rung=planning.rung, model=planning.model)
    history = read_history(traffic, fleet, planning.zone)
    week = planned_week(history, fleet, planning)
    service_s = times.mean_s * planning.service_time_factor
    sized = size(fleet, week, planning, service_s)
    if not sensitivity:
        return CapacityPlan(fleet, planning, history, week, times, sized)
    assert times.atoms is not None
    in_production: Sequence[float] = (times.atoms * planning.service_time_factor).tolist()
    retry_rows, note = to_retries(fleet, week, sized, in_production, seed)
    service_rows = to_service_time(fleet, week, planning, service_s, sized)
    return CapacityPlan(fleet, planning, history, week, times, sized, service_rows, retry_rows, note)


def results(plan: CapacityPlan) -> dict[str, Any]:
    """As JSON has it.

    Returns:
        `regions` by name: `gpus` to have, margin included; `gpus_alone`, for the region's own peak, `gpus_in_service`,
        for the loss of any region too, and `gpus_now` of the fleet file; `peak_rps` at `peak_at`; `utilisation` at the
        peak and `blocking` (Erlang's B: share that waits and tries again) with the GPUs in service;
        `mean_utilisation` over the week with all; `load_in_loss` and `blocking_in_loss` at worst; `cost_per_month`.
        `loss`: when each region is lost, the hour at which the others are fullest, and its users' mean round trip.
        `assumptions`: what it rests on. `repairs`: what was mended in the history.
    """
    sized, week, prices = plan.sized, plan.week, plan.planning.prices
    regions = {name: _region(plan, i) for i, name in enumerate(plan.fleet.names)}
    return {
        "name": plan.planning.name,
        "regions": regions,
        "total": {
            "gpus": int(sized.gpus.sum()),
            "gpus_alone": int(sized.alone.sum()),
            "gpus_in_service": int(sized.with_loss.sum()),
            "gpus_now": sum(region.gpus for region in plan.fleet.regions.values()),
            "gpus_with_a_standby_each": 2 * int(sized.alone.sum()),
            "cost_per_month": round(sum(one["cost_per_month"] for one in regions.values()), 2),
            "currency": prices.currency,
            "service_time_s": round(plan.service_s, 6),
        },
        "loss": {
            name: {"fullest_at": hour_name(hour), "round_trip_ms": round(sized.round_trip_ms[name], 1)}
            for name, hour in sized.loss_hours.items()
        },
        "assumptions": assumptions(plan),
        "repairs": list(plan.history.repairs),
        "sensitivity": {
            "service_time": [asdict(row) for row in plan.service_rows],
            "retries": [asdict(row) for row in plan.retry_rows],
            "failure_goal_met": _meets(plan),
            "note": plan.retry_note,
        },
        "week": {name: [round(rps, 4) for rps in week.rps[:, i].tolist()] for i, name in enumerate(week.names)},
    }


def _region(plan: CapacityPlan, i: int) -> dict[str, Any]:
    sized, week = plan.sized, plan.week
    name = week.names[i]
    peak, hour = week.peak(i)
    serving, gpus = int(sized.with_loss[i]), int(sized.gpus[i])
    offered = peak * plan.service_s
    return {
        "gpus": gpus,
        "peak_rps": round(peak, 4),
        "utilisation": round(offered / serving, 6) if serving else 0.0,
        "blocking": round(erlang_b(serving, offered), 9) if offered else 0.0,
        "peak_at": hour_name(hour),
        "gpus_alone": int(sized.alone[i]),
        "gpus_in_service": serving,
        "gpus_now": plan.fleet.regions[name].gpus,
        "mean_utilisation": round(float(week.mean_rps[i]) * plan.service_s / gpus, 6) if gpus else 0.0,
        "load_in_loss": round(float(sized.loss_load[i]), 6),
        "blocking_in_loss": round(float(sized.loss_blocking[i]), 9),
        "cost_per_month": round(gpus * plan.planning.prices.of(name) * _HOURS_A_MONTH, 2),
    }


def _meets(plan: CapacityPlan) -> bool | None:
    """Whether the fleet's own retries keep failures within the goal at the planned demand; None: not simulated."""
    rows = [row for row in plan.retry_rows if row.load == 1.0 and row.attempts == plan.fleet.retry.attempts]
    return all(row.failure_share <= plan.planning.goal.failures for row in rows) if rows else None


def assumptions(plan: CapacityPlan) -> list[str]:
    """All that the plan rests on, one sentence each."""
    planning, goal, fleet = plan.planning, plan.planning.goal, plan.fleet
    rings = fleet.farthest_ring
    found = [
        f"service time: {plan.times.text}, times {planning.service_time_factor:g} in production",
        *plan.week.notes,
        f"demand grows to {planning.growth:g} of the history's",
        f"within an interval the highest demand is {planning.peak_within:g} of its mean",
    ]
    for one in planning.launches:
        where = ", ".join(one.regions) or "all regions"
        when = f"{one.day}, {one.from_hour:g} h for {one.hours:g} h ({one.zone})"
        found.append(f"{one.name}: {one.factor:g} times the demand of {where} on {when}")
    found += [
        "users arrive independently of each other (Poisson), and one dispatcher knows a region's free GPUs (Erlang B)",
        f"at most {100 * goal.blocking:g} % of a region's requests wait at its peak",
        f"at most {100 * goal.failures:g} % of the requests may fail after retries",
        f"at its peak a region stays below {100 * fleet.thresholds[0].load:g} % of its GPUs: traffic stays at home",
    ]
    if goal.lose_a_region:
        found.append(
            f"any one region may be lost at any hour; its users still reach an edge, and the others carry it within "
            f"{100 * fleet.target_load:g} % of their GPUs in service, up to ring {rings}, where at most "
            f"{100 * goal.blocking_in_loss:g} % wait"
        )
    else:
        found.append("no region is lost")
    prices = planning.prices
    found += [
        f"{100 * planning.margin:g} % of the GPUs are a margin, for those that are down or slow",
        f"a GPU server computes one request at a time and costs {prices.gpu_hour:g} {prices.currency} an hour"
        + "".join(f", {price:g} in {name}" for name, price in prices.regions.items())
        + f"; a month has {_HOURS_A_MONTH:g} hours",
    ]
    return found
