"""What the plan depends on: service time, by sizing again; retries, on the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from routing.errors import RoutingError
from routing.fleet import Fleet
from routing.load import Load
from routing.planner import plan
from routing.schema import validated

from .. import service_times as service
from ..simulate.experiment import Experiment
from ..simulate.scenario import Arrivals, Scenario
from .settings import Planning
from .sizing import Sized, size
from .week import Week

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
