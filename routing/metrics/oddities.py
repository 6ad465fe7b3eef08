"""What is wrong with metrics, by name: one line each, so that a log can be searched for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Names of what may be wrong. What follows from each is in `docs/traffic.md`."""

    REFUSED = "refused"
    """Nobody listens at the machine's address."""
    LATE = "late"
    """No answer within the time limit."""
    FAILED = "failed"
    """An answer other than 200, a broken connection, a name that does not resolve."""
    UNREADABLE = "unreadable"
    """No Prometheus text, or too long."""
    NO_SERIES = "no_series"
    """A page without a series that its kind of machine has."""
    NOT_A_NUMBER = "not_a_number"
    NEGATIVE = "negative"
    ABOVE_LIMIT = "above_limit"
    """More load than there can be, a flag that is neither 0 nor 1, or demand that no world makes."""
    COUNTER_RESET = "counter_reset"
    FROZEN = "frozen"
    """A page that comes, but whose values stand still although they cannot."""
    FROM_THE_FUTURE = "from_the_future"
    STALE = "stale"
    """Not heard of for `stale_after_s`."""
    HALF_MISSING = "half_missing"
    """At least half of a region's GPU servers are not heard of."""
    TOO_MANY = "too_many"
    """More GPU servers than the fleet has."""
    NO_REGION = "no_region"
    """A machine without a label `region`, or with one that the fleet does not have."""


@dataclass(frozen=True, order=True)
class Oddity:
    """One thing that is wrong.

    Attributes:
        kind: its name.
        where: region, kind and address of the machine, and the series where it is about one.
        text: what was seen, and what is made of it.
    """

    kind: Kind
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind} {self.where}: {self.text}"
