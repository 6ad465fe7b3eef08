"""An experiment: a scenario with the files that it names."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from routing.errors import InputError
from routing.files import read_yaml
from routing.fleet import Fleet, load_fleet
from routing.schema import did_you_mean, validated
from routing.table import RoutingTable

from .. import service_times as service
from ..columns import read_columns
from .scenario import HOME, LOOP, PLANNED, Arrivals, Scenario, ServiceTime

Trace = tuple[tuple[float, str], ...]
TRACE_COLUMNS = ("scheduled_at_s", "region")


@dataclass(frozen=True)
class Experiment:
    """A scenario with the files that it names.

    Attributes:
        scenario: as written.
        fleet: with the scenario's retry policy.
        times: of service.
        table: of a file; None: the scenario says how it is made.
        trace: (time in s, region) of a file, in order of time.
    """

    scenario: Scenario
    fleet: Fleet
    times: service.ServiceTimes
    table: RoutingTable | None = None
    trace: tuple[tuple[float, str], ...] = ()


def load_experiment(path: Path | str, *, fleet: Path | None = None, trace: Path | None = None) -> Experiment:
    """Read a scenario and its files.

    Args:
        path: of the scenario.
        fleet: instead of the scenario's.
        trace: arrivals, instead of the scenario's.

    Raises:
        InputError: with the file and the key.
    """
    path = Path(path)
    try:
        scenario = validated(Scenario, read_yaml(path))
    except InputError as error:
        raise error if error.file else error.within(path) from None
    if trace is not None:
        scenario = scenario.model_copy(update={"arrivals": Arrivals()})
    found = load_fleet(fleet if fleet is not None else path.parent / scenario.fleet)
    if scenario.retry is not None:
        found = found.model_copy(update={"retry": scenario.retry})
    try:
        scenario.check(found)
    except InputError as error:
        raise error.within(path) from None
    if trace is None and scenario.arrivals.trace is not None:
        trace = path.parent / scenario.arrivals.trace
    return Experiment(
        scenario=scenario,
        fleet=found,
        times=service_times(scenario.service_time, found, path.parent),
        table=None
        if scenario.table in {LOOP, HOME, PLANNED}
        else RoutingTable.read(path.parent / scenario.table, found),
        trace=() if trace is None else read_trace(trace, found, scenario.duration_s),
    )


def service_times(settings: ServiceTime, fleet: Fleet, folder: Path) -> service.ServiceTimes:
    """The distribution that a scenario asks for."""
    if settings.bench is not None:
        found = service.of_benchmark(folder / settings.bench, rung=settings.rung, model=settings.model)
        if settings.mean_s is None:
            return found
        assert found.atoms is not None
        text = f"{found.text}, scaled to {settings.mean_s:g} s"
        return service.measured((found.atoms * (settings.mean_s / found.mean_s)).tolist(), text)
    mean_s = settings.mean_s or fleet.service_time_s
    if settings.kind == "fixed":
        return service.fixed(mean_s)
    return (
        service.exponential(mean_s) if settings.kind == "exponential" else service.lognormal(mean_s, settings.variation)
    )


def read_trace(path: Path, fleet: Fleet, duration_s: float) -> Trace:
    """Arrivals of a file with the columns `scheduled_at_s` and `region`; further columns are not read.

    Args:
        path: of a CSV or Parquet file.
        fleet: whose regions they are.
        duration_s: of the scenario; arrivals after it are left out.

    Returns:
        (time in s, region), in order of time.

    Raises:
        InputError: with the line.
    """
    try:
        columns = read_columns(path, TRACE_COLUMNS, "a trace has scheduled_at_s and region")
        times, time_of = columns.parsed("scheduled_at_s", _scheduled)
        regions, region_of = columns.parsed("region", partial(_region, fleet))
    except InputError as error:
        raise error.within(path) from None
    rows = zip(time_of.tolist(), region_of.tolist(), strict=True)
    found = sorted((times[at], regions[where]) for at, where in rows if times[at] <= duration_s)
    if not found:
        raise InputError(f"has no arrival in the scenario's {duration_s:g} s", file=str(path))
    return tuple(found)


def _scheduled(value: Any) -> float:
    try:
        time = float(value)
    except (TypeError, ValueError):
        raise InputError(f"scheduled_at_s is no number: {value}") from None
    if not math.isfinite(time) or time < 0:
        raise InputError(f"scheduled_at_s is {value}; it counts seconds from the start")
    return time


def _region(fleet: Fleet, value: Any) -> str:
    if value not in fleet.regions:
        raise InputError(f"{value} is none of the fleet's regions{did_you_mean(str(value), fleet.regions)}")
    return str(value)


def with_fleet(experiment: Experiment, fleet: Fleet) -> Experiment:
    """The same with another fleet, as a tuner tries them: regions and GPUs have to be the same."""
    return replace(experiment, fleet=fleet)
