"""The fleet: regions, how far they are from each other, and the policies of its traffic (`fleet.yaml`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import asin, cos, radians, sin, sqrt
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PrivateAttr, model_validator

from .console import tell
from .data_plane import DataPlane, Place, loopback_places
from .errors import InputError
from .files import read_yaml
from .jobs import Jobs, Queue
from .metrics.settings import MetricsSettings
from .old_names import in_todays_names
from .schema import MOST, Count, Items, Number, Positive, RegionName, Share, Strict, did_you_mean, validated, wrong

EARTH_RADIUS_KM = 6371.0  # mean (IUGG)
FIBRE_KM_PER_MS = 200.0  # light in glass, 2/3 of its speed in vacuum
PATH_STRETCH = 1.5
"""How much longer cables are than great circles: the pairs of the example fleet that were measured have 1.38
(us-east to eu-west), 1.45 (eu-west to ap-south) and 1.70 (us-east to us-west)."""


class Region(Strict):
    """One region.

    Attributes:
        gpus: GPU servers, each of which computes one request at a time; 0 for a place that has only users.
        least: of them that a scaler keeps at least, where they come and go: more are lost only where fewer are ready.
            None: all of them.
        latitude, longitude: degrees, north and east positive; both or none.
        gpu_hour_price: what an hour of one GPU costs, in the currency of your choice.
        egress_gb_price: what a gigabyte that leaves the region costs.
    """

    gpus: Count
    least: Count | None = None
    latitude: float | None = Field(default=None, ge=-90, le=90)
    longitude: float | None = Field(default=None, ge=-180, le=180)
    gpu_hour_price: Number = 0.0
    egress_gb_price: Number = 0.0

    @property
    def expected(self) -> int:
        """GPU servers of which each that is not ready is missing."""
        return self.gpus if self.least is None else self.least

    @model_validator(mode="after")
    def _least_is_not_more(self) -> Self:
        if self.least is not None and self.least > self.gpus:
            raise wrong("least", f"{self.least} is more than gpus ({self.gpus})")
        return self

    @model_validator(mode="after")
    def _both_coordinates(self) -> Self:
        if (self.latitude is None) != (self.longitude is None):
            raise wrong("longitude" if self.longitude is None else "latitude", "is missing; give both or none")
        return self


class Threshold(Strict):
    """A level of heat.

    Attributes:
        load: share of a region's capacity above which it is this hot.
        ring: the farthest ring that its overflow may then use.
    """

    load: Annotated[Share, Field(gt=0)]
    ring: Annotated[Count, Field(ge=1)]


class DelayPolicy(Strict):
    """Marginal delay: a share of the jobs waits before its first attempt, which takes the edge off a burst.

    Attributes:
        share: of the jobs, 0 to 1.
        max_s: a delayed job waits uniform(0, max_s) seconds.
        burst_share: what `share` is raised to while a burst is seen; not less than `share`.
    """

    share: Share = 0.0
    max_s: Number = 0.5
    burst_share: Share = 0.2

    @model_validator(mode="after")
    def _burst_raises(self) -> Self:
        if self.burst_share < self.share:
            raise wrong("burst_share", f"{self.burst_share} is below share ({self.share}), and a burst raises it")
        return self


class RetryPolicy(Strict):
    """Exponential backoff with full jitter: retry k waits uniform(0, min(base * 2^(k-1), max)) seconds.

    Attributes:
        attempts: tries in all, the first one included.
        base_interval_s, max_interval_s: of the formula; about S/10 and 2 S for jobs of S seconds.
        delay: before the first attempt, once a job.
    """

    attempts: Annotated[Count, Field(ge=1, le=100)] = 9
    base_interval_s: Positive = 0.25
    max_interval_s: Positive = 5.0
    delay: DelayPolicy = DelayPolicy()

    @model_validator(mode="after")
    def _max_is_not_below_base(self) -> Self:
        if self.max_interval_s < self.base_interval_s:
            raise wrong("max_interval_s", f"{self.max_interval_s} is below base_interval_s ({self.base_interval_s})")
        return self


class Money(Strict):
    """Money as a second cost of a plan. It decides where overflow goes, never whether traffic leaves home.

    Attributes:
        weight_ms: milliseconds of round trip that are worth one unit of currency per thousand jobs; 0: money does
            not count.
        answer_mb: size of a job's answer, which is what leaves the region.
    """

    weight_ms: Number = 0.0
    answer_mb: Number = 2.0


class Fleet(Strict):
    """Regions and policies. Times end in _ms or _s, shares are 0 to 1.

    Attributes:
        regions: by name; names are DNS labels.
        latency_ms: round trips, source to destination. A pair that is given in one direction is the same in
            the other; one that is not given is derived from coordinates (`great_circle_ms`).
        never: {source: regions that its jobs must not go to}, as the law of its users demands. It holds for plans,
            retries and all targets.
        money: what prices of regions weigh in plans.
        service_time_s: mean compute time of a request, until it is measured.
        rings_ms: ring r of a source holds the regions up to rings_ms[r-1] away that no nearer ring holds.
            Ring 0 is the region itself.
        thresholds: levels of heat, coolest first, each with the farthest ring that it unlocks.
        target_load: a region that receives overflow is not filled above this. Where it is above the lowest
            threshold, what others bring makes a region no hotter: only its own users' demand does.
        chunk: part of a region's capacity that is moved in one iteration.
        smoothing_s: time constant of the demand estimate.
        hysteresis: changes of a share that are smaller are not published.
        max_step: largest change of a share in one update.
        stale_after_s: metrics that are older freeze the table.
        jobs: what the service behind the dispatchers takes.
        queue: how long jobs may wait in a region's line, and who is served first.
        retry: what an edge does with a job that is refused.
        data_plane: its proxies.
        metrics: where they are taken from.
    """

    regions: Annotated[Mapping[RegionName, Region], Field(min_length=1)]
    latency_ms: Mapping[RegionName, Mapping[RegionName, Number]] = {}
    never: Mapping[RegionName, Annotated[tuple[RegionName, ...], Items]] = {}
    money: Money = Money()
    service_time_s: Positive
    rings_ms: Annotated[tuple[Positive, ...], Items, Field(min_length=1)]
    thresholds: Annotated[tuple[Threshold, ...], Items, Field(min_length=1)]
    target_load: Annotated[Share, Field(gt=0)]
    chunk: Annotated[Share, Field(ge=0.001)] = 0.02
    smoothing_s: Positive = 20.0
    hysteresis: Share = 0.02
    max_step: Annotated[Share, Field(gt=0)] = 0.2
    stale_after_s: Positive = 15.0
    metrics: MetricsSettings = MetricsSettings()
    jobs: Jobs = Jobs()
    queue: Queue = Queue()
    retry: RetryPolicy = RetryPolicy()
    data_plane: DataPlane = DataPlane()

    _latency_ms: dict[str, dict[str, float]] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_rings()
        self._check_never()
        if not any(region.gpus for region in self.regions.values()):
            raise wrong("regions", "no region has a GPU")
        if (rps := max(self.capacity_rps(name) for name in self.regions)) > MOST:
            text = f"{self.service_time_s:g} lets a region compute {rps:g} requests per second; {MOST:g} is the most"
            raise wrong("service_time_s", text)
        for source, row in self.latency_ms.items():
            for name in (source, *row):
                if name not in self.regions:
                    key = f"latency_ms.{source}" if name == source else f"latency_ms.{source}.{name}"
                    raise wrong(key, f"{name} is none of the regions{did_you_mean(name, self.regions)}")
            if source in row:
                raise wrong(f"latency_ms.{source}.{source}", "a region is not away from itself; leave it out")
        self._latency_ms.update(
            {source: {to: self._round_trip_ms(source, to) for to in self.regions} for source in self.regions}
        )
        for name in self.regions:
            away = {self._latency_ms[source][name]: source for source in self.regions if source != name}
            if away and (nearest := min(away)) > self.rings_ms[-1]:
                text = f"no ring reaches it: {away[nearest]} is nearest, {nearest:.0f} ms away"
                raise wrong(f"regions.{name}", f"{text}, and rings_ms ends at {self.rings_ms[-1]:g}")
        for source in self.never:
            reached = (to for to in self.regions if self.regions[to].gpus and self.ring(source, to) is not None)
            if not any(reached):
                raise wrong(f"never.{source}", "leaves its jobs nowhere to go: no region that they may reach has a GPU")
        self.data_plane.check(self._gpus())
        self.metrics.check(self._gpus())
        return self

    def _check_rings(self) -> None:
        for i in range(1, len(self.rings_ms)):
            if self.rings_ms[i] <= self.rings_ms[i - 1]:
                raise wrong(f"rings_ms.{i}", f"{self.rings_ms[i]:g} is not above the ring before it")
        for i, threshold in enumerate(self.thresholds):
            if threshold.ring > len(self.rings_ms):
                text = f"there is no ring {threshold.ring}: rings_ms has {len(self.rings_ms)}"
                raise wrong(f"thresholds.{i}.ring", text)
            if i and threshold.load <= self.thresholds[i - 1].load:
                raise wrong(f"thresholds.{i}.load", f"{threshold.load:g} is not above the threshold before it")
            if i and threshold.ring < self.thresholds[i - 1].ring:
                raise wrong(f"thresholds.{i}.ring", f"{threshold.ring} is nearer than that of a cooler threshold")

    def _check_never(self) -> None:
        for source, regions in self.never.items():
            for name, key in ((source, f"never.{source}"), *((to, f"never.{source}.{to}") for to in regions)):
                if name not in self.regions:
                    raise wrong(key, f"{name} is none of the regions{did_you_mean(name, self.regions)}")
            if source in regions:
                raise wrong(f"never.{source}", "names itself: jobs of its own users always may stay there")

    def _round_trip_ms(self, source: str, to: str) -> float:
        if source == to:
            return 0.0
        for one, other in ((source, to), (to, source)):
            if other in self.latency_ms.get(one, {}):
                return self.latency_ms[one][other]
        here, there = self.regions[source], self.regions[to]
        if here.latitude is None or here.longitude is None or there.latitude is None or there.longitude is None:
            text = "is missing, and cannot be derived: give it, or latitude and longitude of both regions"
            raise wrong(f"latency_ms.{source}.{to}", text)
        return great_circle_ms((here.latitude, here.longitude), (there.latitude, there.longitude))

    @property
    def names(self) -> tuple[str, ...]:
        """Regions, in the order of the file."""
        return tuple(self.regions)

    def latency(self, source: str, destination: str) -> float:
        """Round trip in ms, 0 within a region."""
        return self._latency_ms[source][destination]

    def latencies(self, source: str) -> Mapping[str, float]:
        """Round trips in ms from a source to each region."""
        return self._latency_ms[source]

    def ring(self, source: str, destination: str) -> int | None:
        """Ring of the source that the destination is in; None beyond the last, and where `never` forbids it."""
        if source == destination:
            return 0
        if not self.may(source, destination):
            return None
        latency = self.latency(source, destination)
        return next((r for r, limit in enumerate(self.rings_ms, start=1) if latency <= limit), None)

    def may(self, source: str, destination: str) -> bool:
        """Whether `never` lets jobs of the source go there."""
        return destination not in self.never.get(source, ())

    def price(self, region: str) -> float:
        """What a thousand jobs cost there: 1000 (gpu_hour_price service_time_s / 3600 + egress_gb_price answer_gb)."""
        prices = self.regions[region]
        egress = prices.egress_gb_price * self.money.answer_mb / 1000
        return 1000 * (prices.gpu_hour_price * self.service_time_s / 3600 + egress)

    def with_latencies(self, measured_ms: Mapping[str, Mapping[str, float]]) -> Fleet:
        """The same fleet with other round trips, {source: {destination: ms}}; pairs that are left out stay."""
        found = self.model_copy()
        found._latency_ms = {one: {**row, **measured_ms.get(one, {})} for one, row in self._latency_ms.items()}  # noqa: SLF001  # its own class
        return found

    def avoiding(self, regions: Collection[str]) -> Fleet:
        """The same fleet where no other region's jobs may go to these, as while they are drained."""
        kept = {name: tuple(sorted({*self.never.get(name, ()), *regions} - {name})) for name in self.regions}
        return self.model_copy(update={"never": kept}) if regions else self

    def rings(self, source: str) -> tuple[tuple[str, ...], ...]:
        """Regions of each ring of a source, nearest first; `rings(s)[0]` is `(s,)`. Rings may be empty."""
        nearest = sorted(self.regions, key=lambda name: (self.latency(source, name), name))
        return tuple(
            tuple(name for name in nearest if self.ring(source, name) == r) for r in range(len(self.rings_ms) + 1)
        )

    @property
    def farthest_ring(self) -> int:
        """The farthest ring that any heat unlocks."""
        return self.thresholds[-1].ring

    def places(self) -> Mapping[str, Place]:
        """Where the proxies of each region are: as the file has it, or on this machine.

        Raises:
            InputError: the fleet has more parts than this machine has ports for them.
        """
        return self.data_plane.places or loopback_places(self._gpus(), self.data_plane.first_port)

    def _gpus(self) -> dict[str, int]:
        return {name: region.gpus for name, region in self.regions.items()}

    def capacity_rps(self, region: str) -> float:
        """Requests per second that all GPUs of a region compute, by `service_time_s`."""
        return self.regions[region].gpus / self.service_time_s


def great_circle_ms(here: tuple[float, float], there: tuple[float, float]) -> float:
    """Round trip between two places (latitude, longitude in degrees), in ms.

    2 * PATH_STRETCH * d / FIBRE_KM_PER_MS, with the great-circle distance d in km by the haversine formula:
    0.015 ms a km.
    """
    (lat_1, lon_1), (lat_2, lon_2) = (map(radians, place) for place in (here, there))
    h = sin((lat_2 - lat_1) / 2) ** 2 + cos(lat_1) * cos(lat_2) * sin((lon_2 - lon_1) / 2) ** 2
    distance_km = 2 * EARTH_RADIUS_KM * asin(sqrt(min(1.0, h)))
    return 2 * PATH_STRETCH * distance_km / FIBRE_KM_PER_MS


def load_fleet(path: Path | str) -> Fleet:
    """Read a fleet file.

    Raises:
        InputError: it cannot be read, or a key or value is wrong; the text names file, key and limit.
    """
    content, changes = in_todays_names(read_yaml(Path(path)))
    for change in changes:
        tell(f"warning: {path}: {change}")
    try:
        return validated(Fleet, content)
    except InputError as error:
        raise error.within(path) from None
