"""What a round of metrics gives: an `Observation`, which is all that the control loop's decisions rest on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from typing import Literal


class Kind(StrEnum):
    """Names of what may be wrong with metrics. What follows from each is in `docs/control-loop.md`."""

    REFUSED = "refused"
    """Nobody listens at the proxy's address."""
    LATE = "late"
    """There was no answer within the time limit."""
    FAILED = "failed"
    """The answer was not 200, the connection broke, or a name did not resolve."""
    UNREADABLE = "unreadable"
    """The page is no Prometheus text, or too long."""
    NO_SERIES = "no_series"
    """The page lacks a series that its kind of proxy has."""
    NOT_A_NUMBER = "not_a_number"
    NEGATIVE = "negative"
    ABOVE_LIMIT = "above_limit"
    """The page says more than there can be."""
    COUNTER_RESET = "counter_reset"
    FROZEN = "frozen"
    """The page comes, but its values stand still although they cannot."""
    FROM_THE_FUTURE = "from_the_future"
    STALE = "stale"
    """The proxy was not heard of for `stale_after_s`."""
    TOO_MANY = "too_many"
    """A region has more GPU servers than the fleet file says."""
    NO_REGION = "no_region"
    """A proxy has no label `region`, or one that the fleet does not have."""


@dataclass(frozen=True, order=True)
class ScrapeProblem:
    """One thing that is wrong with metrics.

    Attributes:
        kind: its name.
        where: region, kind and address of the proxy, and the series where it is about one.
        text: what was seen, and what is made of it.
    """

    kind: Kind
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind} {self.where}: {self.text}"


@dataclass(frozen=True)
class RegionSeen:
    """One region in one round. None: not known this time.

    Attributes:
        demand_rps: jobs that its users sent, the mean over the last `over_s`; never attempts.
        over_s: time that `demand_rps` and `retries_rps` are means of.
        retries_rps: attempts after the first, of its users' jobs.
        capacity_rps: jobs that its ready GPUs can compute.
        gpus_ready: GPU servers that its dispatchers find ready, busy or not.
        gpus_missing: GPU servers of the fleet file that are not ready; where they come and go, of the least.
        load: share of its ready GPU servers that computes.
        waiting: jobs in its dispatchers' queues.
        cost_s: time of a GPU server that one request takes.
        edge_gone: nobody listens where its edges were: it has no users now. Its demand is 0.
    """

    demand_rps: float | None = None
    over_s: float = 0.0
    retries_rps: float | None = None
    capacity_rps: float | None = None
    gpus_ready: int | None = None
    gpus_missing: int | None = None
    load: float | None = None
    waiting: float | None = None
    cost_s: float | None = None
    edge_gone: bool = False

    @property
    def load_per_rps(self) -> float | None:
        """Share of the region's load that one more request per second costs."""
        if not self.gpus_ready or self.cost_s is None:
            return None
        return self.cost_s / self.gpus_ready


UNSEEN = RegionSeen()


@dataclass(frozen=True)
class Observation:
    """All regions in one round.

    Attributes:
        regions: by name; one that is left out was not heard of.
        rps: {source: {destination: jobs per second that were answered with a result}}.
        problems: what was missing, late or absurd.
    """

    regions: Mapping[str, RegionSeen]
    rps: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    problems: tuple[ScrapeProblem, ...] = ()


Tier = Literal["dispatcher", "edge"]


@dataclass(frozen=True, order=True)
class Target:
    """A dispatcher or an edge.

    Attributes:
        region: where it is.
        tier: what it is.
        address: host and port, its name in all that is said of it.
    """

    region: str
    tier: Tier
    address: str

    def __str__(self) -> str:
        return f"{self.region} {self.tier} {self.address}"


@dataclass(frozen=True)
class Sample:
    """One value; finite, 0 or more."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Page:
    """What one proxy said of itself.

    Attributes:
        proxy: whose it is.
        at: when that was so, in seconds of our monotonic clock.
        samples: the series that were wanted.
        stamp: tells pages apart where the same one may come twice; None where it cannot.
    """

    proxy: Target
    at: float
    samples: tuple[Sample, ...]
    stamp: float | None = None

    def each(self, name: str, **labels: str) -> Iterator[Sample]:
        """Samples of this name that have these labels."""
        for sample in self.samples:
            if sample.name == name and all(sample.labels.get(key) == value for key, value in labels.items()):
                yield sample

    def total(self, name: str, **labels: str) -> float | None:
        """Their sum; None where there is none."""
        values = [sample.value for sample in self.each(name, **labels)]
        return sum(values) if values else None


@dataclass(frozen=True)
class ScrapeFailure:
    """A proxy that gave no page in a round.

    Attributes:
        proxy: which.
        kind: `REFUSED` says that nobody listens there; all others that nothing is known of it.
        text: what happened.
    """

    proxy: Target
    kind: Kind
    text: str


@dataclass(frozen=True)
class Reading:
    """What a source gives in one round."""

    pages: tuple[Page, ...] = ()
    failures: tuple[ScrapeFailure, ...] = ()
    problems: tuple[ScrapeProblem, ...] = ()


def checked(proxy: Target, name: str, labels: Mapping[str, str], value: float) -> Sample | ScrapeProblem:
    """Return a sample, or what is wrong with its value. Nothing that is read here can be below 0."""
    where = f"{proxy} {name}"
    if not isfinite(value):
        return ScrapeProblem(Kind.NOT_A_NUMBER, where, f"is {value}; taken as not there")
    if value < 0:
        return ScrapeProblem(Kind.NEGATIVE, where, f"is {value:g}; taken as not there")
    return Sample(name, labels, value)
