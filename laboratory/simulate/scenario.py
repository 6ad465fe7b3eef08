"""A scenario: what traffic meets what fleet, and what happens to it (`scenario.yaml`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from routing.errors import InputError
from routing.files import read_yaml
from routing.fleet import Fleet, RetryPolicy, load_fleet
from routing.schema import Count, Items, Number, Positive, RegionName, Share, Strict, did_you_mean, validated, wrong
from routing.table import RoutingTable

from .. import service_times as service
from ..arrivals import TRACE_COLUMNS
from ..columns import read_columns
from .scaling_settings import Scaling, Span

LONGEST_S = 366 * 86_400.0
MOST_ROUNDS = 1_000_000
LOOP, HOME, PLANNED = "control", "home", "plan"


class ServiceTime(Strict):
    """How long a GPU server computes.

    Attributes:
        kind: of distribution; `measured` takes the times of a benchmark.
        mean_s: None: the fleet's `service_time_s`, and with `measured` that of the benchmark.
        variation: of `lognormal`: standard deviation over mean.
        bench: file of `python -m pipeline bench --json`, seen from the scenario's folder.
        rung: which of its rungs; None: the last that was kept.
        model: that the benchmark must be of; None: any.
    """

    kind: Literal["fixed", "exponential", "lognormal", "measured"] = "lognormal"
    mean_s: Positive | None = None
    variation: Annotated[Number, Field(le=10)] = 0.1
    bench: str | None = None
    rung: str | None = None
    model: str | None = None

    @model_validator(mode="after")
    def _bench_with_measured(self) -> Self:
        if (self.kind == "measured") != (self.bench is not None):
            raise wrong("bench", "is missing" if self.bench is None else f"is for the kind measured, not {self.kind}")
        return self


class Proxies(Strict):
    """The data plane.

    Attributes:
        dispatchers: of each region, with its GPU servers dealt out among them.
        queue: jobs that may wait at a dispatcher; 0: it refuses at once; None: as the fleet's `queue` has it.
        connect_timeout_s: after which a region that does not answer counts as refused.
        detection_s: from the death of a region until edges send no more there, and from its return.
    """

    dispatchers: Annotated[Count, Field(ge=1, le=1000)] = 1
    queue: Count | None = None
    connect_timeout_s: Positive = 2.0
    detection_s: Number = 3.0


class Day(Strict):
    """Demand over a day: a cosine, from its highest value, which is the one given, down to the trough.

    Attributes:
        peak_hour: of the local time of a region, at which it has most requests.
        trough: lowest demand as a share of the highest.
        starts_at: hour of the day (UTC) at which the scenario begins.
        utc_offset: hours by region; a region that is left out has its longitude / 15.
        length_s: how long the day takes.
    """

    peak_hour: Annotated[Number, Field(lt=24)] = 20.0
    trough: Share = 0.4
    starts_at: Annotated[Number, Field(lt=24)] = 0.0
    utc_offset: Mapping[RegionName, Annotated[float, Field(ge=-14, le=14)]] = {}
    length_s: Annotated[Positive, Field(ge=10)] = 86_400.0


class Change(Span):
    """Demand times a factor, for a while: a spike, a launch, a step.

    Attributes:
        factor: of the demand.
        regions: whose demand; none: of all.
    """

    factor: Number
    regions: Annotated[tuple[RegionName, ...], Items] = ()


class Burst(Strict):
    """Jobs of one region that come together: a herd.

    Attributes:
        at_s: when.
        region: whose users.
        jobs: how many.
        over_s: evenly over so long; 0: in one moment.
    """

    at_s: Number
    region: RegionName
    jobs: Annotated[Count, Field(ge=1)]
    over_s: Number = 0.0


class Arrivals(Strict):
    """Demand: Poisson with a rate that changes, jobs together, and a trace, in sum.

    Attributes:
        load: of each region, as a share of what its GPUs can compute.
        region_load: the same for some regions.
        rps: requests per second for some regions, instead.
        day: makes all of it the peak of a day.
        changes: factors for a while; those of one moment multiply.
        bursts: jobs together.
        trace: file with the columns `scheduled_at_s` and `region`, seen from the scenario's folder.
    """

    load: Number = 0.0
    region_load: Mapping[RegionName, Number] = {}
    rps: Mapping[RegionName, Number] = {}
    day: Day | None = None
    changes: Annotated[tuple[Change, ...], Items] = ()
    bursts: Annotated[tuple[Burst, ...], Items] = ()
    trace: str | None = None


class Failure(Span):
    """What goes wrong for a while.

    Attributes:
        region: where.
        gpus: that die; None: the whole region, if `slowness` is 1.
        vanishes: a region that dies does not refuse connections, but answers nothing.
        slowness: factor of service times; above 1 the region is slow and nothing dies.
    """

    region: RegionName
    gpus: Annotated[Count, Field(ge=1)] | None = None
    vanishes: bool = False
    slowness: Annotated[Positive, Field(le=1000)] = 1.0

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if self.slowness != 1.0 and (self.gpus is not None or self.vanishes):
            raise wrong("slowness", "is for a region that lives; leave gpus and vanishes out")
        if self.vanishes and self.gpus is not None:
            raise wrong("vanishes", "is for whole regions; leave gpus out")
        return self


class Loop(Strict):
    """The control loop and its delays. Smoothing, hysteresis and steps are the fleet's.

    Attributes:
        interval_s: from round to round.
        metrics_age_s: how old what it sees is.
        publish_s: from its decision until edges use the table.
        down: when it does not run; the last table stays.
        metrics: where it takes them from: `pages` of the proxies, or a `prometheus` that scrapes them.
    """

    interval_s: Positive = 5.0
    metrics_age_s: Number = 2.0
    publish_s: Number = 0.5
    down: Annotated[tuple[Span, ...], Items] = ()
    metrics: Literal["pages", "prometheus"] = "pages"


class Scenario(Strict):
    """One experiment. Times in s from its start; see the classes of its parts.

    Attributes:
        name: for people.
        fleet: file, seen from the scenario's folder.
        duration_s: jobs arrive for so long; what is under way then is seen to its end.
        warm_up_s: not counted.
        seed: of all random draws.
        service_time, proxies, arrivals, failures, control: the parts.
        table: `control`: the loop makes it. `home`: all at home. `plan`: planned once, for the demand at the start.
            Else a file.
        scaling: GPU servers come and go; None: they stay.
        retry: instead of the fleet's.
        series_s: distance of the points of the time series; None: a hundredth of the duration.
    """

    name: Annotated[str, Field(min_length=1)]
    fleet: str = "fleet.yaml"
    duration_s: Annotated[Positive, Field(le=LONGEST_S)]
    warm_up_s: Number = 0.0
    seed: Count = 0
    service_time: ServiceTime = ServiceTime()
    proxies: Proxies = Proxies()
    arrivals: Arrivals
    table: str = LOOP
    control: Loop = Loop()
    failures: Annotated[tuple[Failure, ...], Items] = ()
    scaling: Scaling | None = None
    retry: RetryPolicy | None = None
    series_s: Positive | None = None

    @model_validator(mode="after")
    def _times(self) -> Self:
        if self.warm_up_s >= self.duration_s:
            raise wrong("warm_up_s", f"{self.warm_up_s:g} is not below duration_s ({self.duration_s:g})")
        if self.scaling is not None and any(one.slowness == 1.0 for one in self.failures):
            raise wrong("failures", "of GPUs cannot be tried with scaling, which would not know what died")
        if self.series_s is not None and self.duration_s / self.series_s > 100_000:
            raise wrong("series_s", f"{self.series_s:g} makes more than 100,000 points")
        if self.table == LOOP and self.duration_s / self.control.interval_s > MOST_ROUNDS:
            text = f"{self.control.interval_s:g} makes more than {MOST_ROUNDS:,} rounds in {self.duration_s:g} s"
            raise wrong("control.interval_s", text)
        self._see_that_nothing_is_after_the_end()
        by_region: dict[str, float] = {}
        for i, failure in sorted(enumerate(self.failures), key=lambda one: one[1].at_s):
            if failure.at_s < by_region.get(failure.region, 0.0):
                raise wrong(f"failures.{i}.at_s", f"{failure.region} has another failure then")
            by_region[failure.region] = failure.until_s or self.duration_s
        return self

    def _see_that_nothing_is_after_the_end(self) -> None:
        """It would not happen, and nobody would know."""
        spans: dict[str, tuple[Span, ...]] = {
            "arrivals.changes": self.arrivals.changes,
            "failures": self.failures,
            "control.down": self.control.down,
            "scaling.spot.reclaims": self.scaling.spot.reclaims if self.scaling and self.scaling.spot else (),
        }
        begins = [(f"{key}.{i}.at_s", one.at_s) for key, found in spans.items() for i, one in enumerate(found)]
        begins += [(f"arrivals.bursts.{i}.at_s", one.at_s) for i, one in enumerate(self.arrivals.bursts)]
        for key, at_s in begins:
            if at_s >= self.duration_s:
                raise wrong(key, f"{at_s:g} is not before the end ({self.duration_s:g})")
        for i, burst in enumerate(self.arrivals.bursts):
            if (last := burst.at_s + burst.over_s) > self.duration_s:
                raise wrong(
                    f"arrivals.bursts.{i}.over_s", f"ends at {last:g}, after the scenario ({self.duration_s:g})"
                )

    def check(self, fleet: Fleet) -> None:
        """See that it is of this fleet.

        Raises:
            InputError: with the key.
        """
        a = self.arrivals
        named = [("arrivals.region_load", name) for name in a.region_load] + [("arrivals.rps", name) for name in a.rps]
        named += [(f"arrivals.changes.{i}.regions", name) for i, one in enumerate(a.changes) for name in one.regions]
        named += [(f"arrivals.bursts.{i}.region", one.region) for i, one in enumerate(a.bursts)]
        named += [("arrivals.day.utc_offset", name) for name in (a.day.utc_offset if a.day else {})]
        named += [(f"failures.{i}.region", one.region) for i, one in enumerate(self.failures)]
        named += self._of_scaling(fleet)
        for key, name in named:
            if name not in fleet.regions:
                raise InputError(f"{name} is none of the fleet's regions{did_you_mean(name, fleet.regions)}", key=key)
        for i, failure in enumerate(self.failures):
            if failure.gpus is not None and failure.gpus > fleet.regions[failure.region].gpus:
                text = f"{failure.gpus} is more than {failure.region} has ({fleet.regions[failure.region].gpus})"
                raise InputError(text, key=f"failures.{i}.gpus")
        if a.day is not None:
            for name, region in fleet.regions.items():
                if region.longitude is None and name not in a.day.utc_offset:
                    text = f"{name} is missing, and {name} has no longitude that it could be derived from"
                    raise InputError(text, key="arrivals.day.utc_offset")

    def _of_scaling(self, fleet: Fleet) -> list[tuple[str, str]]:
        """Return keys and regions that the section names, and see that somebody serves those who sleep."""
        scaling = self.scaling
        if scaling is None:
            return []
        kept = [scaling.region_least.get(one, scaling.least) for one in fleet.names if fleet.regions[one].gpus]
        if not any(kept) and not scaling.least_share:
            raise InputError("is 0 in each region; one has to serve the others meanwhile", key="scaling.least")
        reclaims = enumerate(scaling.spot.reclaims if scaling.spot else ())
        return [
            *(("scaling.region_least", name) for name in scaling.region_least),
            *((f"scaling.spot.reclaims.{i}.region", one.region) for i, one in reclaims),
        ]


Trace = tuple[tuple[float, str], ...]


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
