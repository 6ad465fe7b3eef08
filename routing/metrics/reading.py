"""What sources give in one round: pages of proxies, proxies that gave none, and what was wrong with values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from .observation import Kind, ScrapeProblem

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
