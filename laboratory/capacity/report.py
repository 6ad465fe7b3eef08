"""A plan of capacity, as JSON has it, with all that it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routing.errors import RoutingError
from routing.fleet import Fleet
from routing.load import Load
from routing.planner import plan
from routing.schema import validated

from .. import service_times as service
from ..queueing import erlang_b
from ..service_times import ServiceTimes, of_benchmark
from ..simulate.scenario import Arrivals, Experiment, Scenario
from . import forecast
from .history import History, read_history
from .planning import Planning, Week, hour_name, planned_week
from .sizing import Sized, size

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
        `forecast`: demand of a later week, with its error in the past, and GPUs for its quantiles.
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
        "forecast": _forecast(plan),
        "repairs": list(plan.history.repairs),
        "sensitivity": {
            "service_time": [asdict(row) for row in plan.service_rows],
            "retries": [asdict(row) for row in plan.retry_rows],
            "failure_goal_met": _meets(plan),
            "note": plan.retry_note,
        },
        "week": {name: [round(rps, 4) for rps in week.rps[:, i].tolist()] for i, name in enumerate(week.names)},
    }


def _forecast(plan: CapacityPlan) -> dict[str, Any]:
    if not plan.planning.forecast_weeks:
        return {}
    return forecast.results(plan.history, plan.fleet, plan.planning, plan.service_s)


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


SERVICE_FACTORS = (0.5, 0.8, 1.0, 1.25, 2.0)
LOADS = (1.0, 1.25, 1.5)
_DURATION_S, _WARM_UP_S = 1200.0, 300.0
MOST_REQUESTS = 10_000_000
"""Of each of up to eighteen simulations: a minute or two for all of them."""
_FEWEST_SAMPLES = 20
_VARIATION = 0.1
_NOT_SIMULATED = "retries were not simulated"


@dataclass(frozen=True)
class ServiceRow:
    """GPUs if a request takes another time.

    Attributes:
        factor: of the service time.
        service_s: mean.
        gpus: in all regions, with the margin.
    """

    factor: float
    service_s: float
    gpus: int


@dataclass(frozen=True)
class RetryRow:
    """What users get with so many attempts, on the simulator, without the margin's GPUs.

    Attributes:
        case: `busiest hour`, or which region is lost.
        load: factor of the demand.
        attempts: at most; 1 is no retry.
        failure_share, attempts_per_request, in_region_share, p95_wait_s: of the simulation.
    """

    case: str
    load: float
    attempts: int
    failure_share: float
    attempts_per_request: float
    in_region_share: float
    p95_wait_s: float


def to_service_time(
    fleet: Fleet, week: Week, planning: Planning, service_s: float, sized: Sized
) -> tuple[ServiceRow, ...]:
    """Size again for other service times; 1.0 is the plan itself."""
    rows = []
    for factor in SERVICE_FACTORS:
        found = sized if factor == 1.0 else size(fleet, week, planning, factor * service_s)
        rows.append(ServiceRow(factor, factor * service_s, int(found.gpus.sum())))
    return tuple(rows)


def to_retries(
    fleet: Fleet, week: Week, sized: Sized, times_s: Sequence[float], seed: int = 0
) -> tuple[tuple[RetryRow, ...], str]:
    """Simulate the busiest hour, with all regions and without the largest, by attempts and load.

    Args:
        fleet: its retry policy is varied in attempts.
        week: demand.
        sized: GPUs; those of the margin are left out, as if they were down.
        times_s: of the benchmark, scaled to production.
        seed: of the simulation.

    Returns:
        Rows, and how service times were drawn; without numba, or with too many requests, no rows, and why.
    """
    try:
        from ..simulate.results import results
        from ..simulate.run import simulate
    except RoutingError as error:
        return (), f"{_NOT_SIMULATED}: {error}"
    if len(times_s) >= _FEWEST_SAMPLES:
        times = service.measured(times_s, f"{len(times_s)} measured times")
    else:
        times = service.lognormal(float(np.mean(times_s)), _VARIATION)
    if (requests := float(week.rps.sum(axis=1).max()) * max(LOADS) * _DURATION_S) > MOST_REQUESTS:
        text = f"{requests:.3g} requests a simulation, and {MOST_REQUESTS:,} are the most here"
        return (), f"{_NOT_SIMULATED}: {text}"
    gpus = sized.with_loss
    load = week.rps * times.mean_s / np.maximum(gpus, 1)
    busiest = int(load.max(axis=1).argmax())
    cases: list[tuple[str, int, NDArray[np.int64]]] = [("busiest hour", busiest, gpus)]
    if sized.loss_hours:
        largest = int(gpus.argmax())
        name = fleet.names[largest]
        without = gpus.copy()
        without[largest] = 0
        cases.append((f"{name} lost", sized.loss_hours[name], without))
    rows = []
    for case, hour, there in cases:
        for factor in LOADS:
            demand = dict(zip(fleet.names, (factor * week.rps[hour]).tolist(), strict=True))
            for attempts in sorted({1, 3, fleet.retry.attempts}):
                experiment = _experiment(fleet, there, demand, attempts, times)
                found = results(simulate(experiment, seed))
                rows.append(
                    RetryRow(
                        case=case,
                        load=factor,
                        attempts=attempts,
                        failure_share=found["failure_share"] or 0.0,
                        attempts_per_request=found["attempts_per_request"] or 0.0,
                        in_region_share=found["in_region_share"] or 0.0,
                        p95_wait_s=found["wait_s"]["p95"] or 0.0,
                    )
                )
    return tuple(rows), f"simulated with service times {times.text}, a fixed table, {_DURATION_S / 60:g} minutes each"


def _experiment(
    fleet: Fleet, gpus: NDArray[np.int64], demand: dict[str, float], attempts: int, times: service.ServiceTimes
) -> Experiment:
    regions = {
        name: one.model_copy(update={"gpus": int(count)})
        for (name, one), count in zip(fleet.regions.items(), gpus, strict=True)
    }
    retry = fleet.retry.model_copy(update={"attempts": attempts})
    sized = fleet.model_copy(update={"regions": regions, "retry": retry, "service_time_s": times.mean_s})
    scenario = Scenario(
        name="retries", duration_s=_DURATION_S, warm_up_s=_WARM_UP_S, arrivals=Arrivals(rps=demand), table="plan"
    )
    capacity = {name: region.gpus / times.mean_s for name, region in regions.items()}
    load = validated(Load, {"demand_rps": demand, "capacity_rps": capacity})
    return Experiment(scenario, sized, times, plan(sized, load, generated_at=datetime.fromtimestamp(0, UTC)))
