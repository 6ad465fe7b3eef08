"""What became of the requests: counts by time, source and serving region, which workers send and the master adds up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from laboratory.arrivals import Outcome

from .histogram import Histogram

Key = tuple[int, str, str]
"""Bin of the scheduled time, region of the user, region that answered (empty: none did with an animation)."""

BUSY = 429


@dataclass
class Cell:
    """Requests of one key.

    Attributes:
        count: how many.
        busy: of those, refused with 429.
        attempts: how many had so many.
        latency: seconds from when they were due.
        wait: of that, what was neither computing nor the way there and back.
    """

    count: int = 0
    busy: int = 0
    attempts: Counter[int] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    wait: Histogram = field(default_factory=Histogram)

    def merge(self, other: Cell) -> None:
        """Add another."""
        self.count += other.count
        self.busy += other.busy
        self.attempts.update(other.attempts)
        self.latency.merge(other.latency)
        self.wait.merge(other.wait)

    def to_list(self) -> list[Any]:
        """As messages have it."""
        histograms = (self.latency, self.wait)
        return [self.count, self.busy, dict(self.attempts), *(one.to_dict() for one in histograms)]

    @classmethod
    def of(cls, content: list[Any]) -> Cell:
        """Of a message."""
        count, busy, attempts, *histograms = content
        read = Counter({int(n): times for n, times in attempts.items()})
        return cls(int(count), int(busy), read, *(Histogram(one) for one in histograms))


class Tally:
    """All requests of a run, or of a part of it.

    Args:
        bin_s: width of the bins of time.
        service_time_s: of the fleet, for requests whose GPU server does not say how long it took.
    """

    def __init__(self, bin_s: float, service_time_s: float) -> None:
        self.bin_s, self.service_time_s = bin_s, service_time_s
        self.cells: dict[Key, Cell] = {}
        self.due: Counter[tuple[int, str]] = Counter()
        """Arrivals that were due, by bin and region: those that have an outcome, were dropped or are under way."""
        self.statuses: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self.late = 0
        self.dropped = 0
        self.most_late_s = 0.0
        self.cpu_percent = 0.0

    def arrived(self, at_s: float, source: str) -> None:
        """Count an arrival."""
        self.due[self._bin(at_s), source] += 1

    def add(self, one: Outcome, late_above_s: float) -> None:
        """Count an outcome."""
        self.statuses[f"{one.region} {one.status}"] += 1
        if one.problem:
            self.problems[one.problem] += 1
        self.late += one.late_s > late_above_s
        self.most_late_s = max(self.most_late_s, one.late_s)
        cell = self.cells.setdefault((self._bin(one.at_s), one.region, one.served_by if one.ok else ""), Cell())
        cell.count += 1
        cell.busy += one.status == BUSY
        if one.attempts:
            cell.attempts[one.attempts] += 1
        if one.ok:
            compute_s = self.service_time_s if one.compute_s is None else one.compute_s
            cell.latency.add(one.latency_s)
            cell.wait.add(one.latency_s - one.away_s - compute_s)

    def _bin(self, at_s: float) -> int:
        return int(at_s / self.bin_s)

    def take(self) -> dict[str, Any]:
        """All of it as a message; it is empty then, so that nothing is ever sent twice."""
        content = {
            "cells": [[*key, cell.to_list()] for key, cell in self.cells.items()],
            "due": [[*key, n] for key, n in self.due.items()],
            "statuses": dict(self.statuses),
            "problems": dict(self.problems),
            "late": self.late,
            "dropped": self.dropped,
            "most_late_s": self.most_late_s,
            "cpu_percent": self.cpu_percent,
        }
        self.cells, self.due, self.late, self.dropped = {}, Counter(), 0, 0
        self.statuses, self.problems = Counter(), Counter()
        return content

    def put(self, content: Mapping[str, Any]) -> None:
        """Add a message."""
        for at, source, served, cell in content["cells"]:
            self.cells.setdefault((int(at), source, served), Cell()).merge(Cell.of(cell))
        for at, source, count in content["due"]:
            self.due[int(at), source] += count
        self.statuses.update(content["statuses"])
        self.problems.update(content["problems"])
        self.late += content["late"]
        self.dropped += content["dropped"]
        self.most_late_s = max(self.most_late_s, content["most_late_s"])
        self.cpu_percent = max(self.cpu_percent, content["cpu_percent"])

    def select(
        self,
        from_s: float = 0.0,
        until_s: float = float("inf"),
        sources: frozenset[str] | None = None,
        served: Callable[[str, str], bool] = lambda _source, _served: True,
    ) -> Cell:
        """Requests that were due in a time, of some regions' users, as one cell.

        Args:
            from_s, until_s: whole bins only; those that the limits cut are left out.
            sources: None: all.
            served: whether to count what the second region did for the first; it is given an empty one for failures.
        """
        found = Cell()
        for source, to, cell in self.between(from_s, until_s):
            if (sources is None or source in sources) and served(source, to):
                found.merge(cell)
        return found

    def between(self, from_s: float = 0.0, until_s: float = float("inf")) -> Iterator[tuple[str, str, Cell]]:
        """(source, served by, cell) of each key whose bin is within."""
        for (at, source, to), cell in self.cells.items():
            if at * self.bin_s >= from_s - 1e-9 and (at + 1) * self.bin_s <= until_s + 1e-9:
                yield source, to, cell

    def demand(self, from_s: float, until_s: float) -> Counter[str]:
        """Arrivals by region in a time, counted as `between` counts."""
        found: Counter[str] = Counter()
        for (at, source), count in self.due.items():
            if at * self.bin_s >= from_s - 1e-9 and (at + 1) * self.bin_s <= until_s + 1e-9:
                found[source] += count
        return found

    @property
    def requests(self) -> int:
        """That have an outcome."""
        return sum(cell.count for cell in self.cells.values())

    @property
    def arrivals(self) -> int:
        """That were due."""
        return self.due.total()
