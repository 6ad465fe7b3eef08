"""What sources give in one round: pages of machines, machines that gave none, and what was wrong with values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

from .oddities import Kind, Oddity
from .targets import Machine


@dataclass(frozen=True)
class Sample:
    """One value; finite, 0 or more."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Page:
    """What one machine said of itself.

    Attributes:
        machine: whose it is.
        at: when that was so, in seconds of our monotonic clock.
        samples: the series that were wanted.
        stamp: tells pages apart where the same one may come twice; None where it cannot.
    """

    machine: Machine
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
class Silence:
    """A machine that gave no page in a round.

    Attributes:
        machine: which.
        kind: `REFUSED` says that it is down; all others that nothing is known of it.
        text: what happened.
    """

    machine: Machine
    kind: Kind
    text: str


@dataclass(frozen=True)
class Reading:
    """What a source gives in one round."""

    pages: tuple[Page, ...] = ()
    silences: tuple[Silence, ...] = ()
    oddities: tuple[Oddity, ...] = ()


def sound(machine: Machine, name: str, labels: Mapping[str, str], value: float) -> Sample | Oddity:
    """A sample, or what is wrong with its value. Nothing that is read here can be below 0."""
    where = f"{machine} {name}"
    if not isfinite(value):
        return Oddity(Kind.NOT_A_NUMBER, where, f"is {value}; taken as not there")
    if value < 0:
        return Oddity(Kind.NEGATIVE, where, f"is {value:g}; taken as not there")
    return Sample(name, labels, value)
