"""Histograms with logarithmic buckets: of fixed precision, small, and summed without loss."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Self

PRECISION = 0.01
"""A value is known to one part in a hundred."""
_BASE = math.log1p(2 * PRECISION)
_LEAST = 1e-4
"""Values below (0.1 ms where they are seconds) are taken as zero."""
_ZERO = -1


class Histogram:
    """Counts of values in buckets, each `2 * PRECISION` wider than the one before.

    Args:
        counts: by bucket, as `to_dict` gives them.
    """

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter({int(bucket): n for bucket, n in (counts or {}).items()})

    def add(self, value: float) -> None:
        """Count one value; below zero counts as zero."""
        self.counts[_bucket(value)] += 1

    def merge(self, other: Histogram) -> None:
        """Count all values of another."""
        self.counts.update(other.counts)

    @property
    def total(self) -> int:
        """How many values there are."""
        return self.counts.total()

    def above(self, limit: float) -> int:
        """How many values are above a limit; those of its own bucket are not."""
        at = _bucket(limit)
        return sum(n for bucket, n in self.counts.items() if bucket > at)

    def quantile(self, share: float) -> float:
        """The smallest value that so large a share does not exceed, to `PRECISION`; 0 of none."""
        wanted = max(1, math.ceil(share * self.total))
        for bucket in sorted(self.counts):
            wanted -= self.counts[bucket]
            if wanted <= 0:
                return _middle(bucket)
        return 0.0

    @property
    def mean(self) -> float:
        """Of the middles of the buckets; 0 of none."""
        total = self.total
        return sum(_middle(bucket) * n for bucket, n in self.counts.items()) / total if total else 0.0

    def to_dict(self) -> dict[int, int]:
        """As messages between processes have it."""
        return dict(self.counts)

    @classmethod
    def sum(cls, parts: list[Self]) -> Self:
        """All of them in one."""
        found = cls()
        for one in parts:
            found.merge(one)
        return found


def _bucket(value: float) -> int:
    return _ZERO if value < _LEAST else int(math.log(value / _LEAST) / _BASE)


def _middle(bucket: int) -> float:
    return 0.0 if bucket == _ZERO else _LEAST * math.exp((bucket + 0.5) * _BASE)
