"""Where the next overflow goes: straight to room, or through a full region whose other overflow moves on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .problem import Floats, Problem

CLOSER_MS = 1e-9
"""Costs that differ by less are equal; the name decides then."""


@dataclass(frozen=True, slots=True)
class Hop:
    """Traffic of `source` moves from a region, itself or one that its overflow had gone to, to another."""

    source: int
    origin: int
    to: int


@dataclass(frozen=True, slots=True)
class Way:
    """How a source's next overflow finds room.

    Attributes:
        hops: its own, then those that make room for it, the last of them to where there is room; empty if none.
        reach: that it was found for, and `version`, the prices.
    """

    hops: list[Hop]
    reach: int
    version: int


class Paths:
    """Shortest ways from a source to room, as in successive shortest paths for a flow of least cost.

    Nearest first goes wrong on small fleets: it fills the only room that is near to one source with overflow of
    another, which had a second choice hardly farther. So room in a full region has a price: the least cost
    that is added, in sum, when overflow in it moves on, and that of the next region too, until there is room,

        price[d] = 0                                                            where d has room
        price[d] = min over a, e of  cost[a, e] - cost[a, d] + price[e]   else; a has overflow in d

    and a source takes the region of least cost + price. Each flow that such ways lead to has the least
    cost of all flows with the same overflow per source (Ahuja, Magnanti, Orlin, Network Flows, 9.7). What
    stands in the way of the exact optimum is that cool overflow may move hot overflow on only as far as its own
    heat allows. Prices never fall, and change only when a region gets full or a flow in it is gone.

    Args:
        problem: fleet and load.
        exchange: whether overflow that is placed may move on.

    Attributes:
        placed: for each region, the overflow in it by source, in requests per second.
        room: for each region, what is left.
    """

    def __init__(self, problem: Problem, *, exchange: bool = True) -> None:
        count = len(problem.names)
        self.placed: list[dict[int, float]] = [{} for _ in range(count)]
        self.room: list[float] = problem.room.tolist()
        self._reach, self._version = 0, 0
        self._exchange = exchange
        self._ring, self._away_ms, self._tolerance = problem.ring, problem.cost_ms, problem.tolerance
        self._full = problem.room <= problem.tolerance
        self._all = np.arange(count)
        self._cost_ms = problem.cost_ms  # within reach; inf beyond
        self._price = np.zeros(count)
        self._next = self._all.copy()  # where overflow of a full region moves on to
        self._detour = np.full((count, count), np.inf)  # (from, to), the least that any flow loses by moving on
        self._mover = np.zeros((count, count), dtype=np.int64)  # whose flow that is

    def reach(self, ring: int) -> None:
        """Let overflow go, and move on, to rings up to this one."""
        self._reach = ring
        self._cost_ms = np.where((self._ring > 0) & (self._ring <= ring), self._away_ms, np.inf)
        full = np.flatnonzero(self._full).tolist()
        for region in full:
            self._find_detours(region)
        self._find_prices(full)

    def find(self, source: int) -> Way:
        """The shortest way of a source's next overflow."""
        cost = self._cost_ms[source] + self._price
        there = int(cost.argmin())
        if cost[there] == np.inf:
            return Way([], self._reach, self._version)
        hops = [Hop(source, source, there)]
        while self._full[there]:
            origin, there = there, int(self._next[there])
            mover = int(self._mover[origin, there])
            # Who moves twice moves once, from the first place to the last, which costs no more.
            twice = next((i for i, hop in enumerate(hops) if hop.source == mover), len(hops))
            hops[twice:] = [Hop(mover, hops[twice].origin if twice < len(hops) else origin, there)]
        return Way(hops, self._reach, self._version)

    def holds(self, way: Way) -> bool:
        """Whether `find` would give this way again."""
        if way.reach != self._reach:
            return False
        # Prices only rise: what leads straight to room stays the shortest way as long as there is some.
        return way.version == self._version or (len(way.hops) == 1 and not bool(self._full[way.hops[0].to]))

    def push(self, way: Way, most: float) -> float:
        """Move up to `most` along a way that holds; returns how much it was."""
        hops, end = way.hops, way.hops[-1].to
        amount = min(most, self.room[end])
        for hop in hops[1:]:
            amount = min(amount, self.placed[hop.origin][hop.source])
        changed = []
        for hop in hops:
            there = self.placed[hop.to]
            if hop.source in there:
                there[hop.source] += amount
            else:
                there[hop.source] = amount
                if self._full[hop.to]:
                    self._find_detours(hop.to)  # the price stays: this was the shortest way for the source
        for hop in hops[1:]:
            here = self.placed[hop.origin]
            here[hop.source] -= amount
            if here[hop.source] <= self._tolerance:
                del here[hop.source]
                changed.append(hop.origin)
        self.room[end] -= amount
        if self.room[end] <= self._tolerance:
            self._full[end] = True
            changed.append(end)
        if changed:
            for region in changed:
                self._find_detours(region)
            self._find_prices(changed)
        return amount

    def flow(self) -> Floats:
        """All that is placed, (source, destination)."""
        found = np.zeros_like(self._away_ms)
        for region, sources in enumerate(self.placed):
            for source, rps in sources.items():
                found[source, region] = rps
        return found

    def _find_detours(self, region: int) -> None:
        if not self.placed[region] or not self._exchange:
            self._detour[region] = np.inf
            return
        sources = np.array(sorted(self.placed[region]))
        lost = self._cost_ms[sources] - self._away_ms[sources, region, None]  # (sources, to)
        best = lost.argmin(axis=0)
        self._detour[region] = lost[best, self._all]
        self._detour[region, region] = np.inf
        self._mover[region] = sources[best]

    def _find_prices(self, changed: list[int]) -> None:
        """Bellman-Ford over the full regions whose overflow would move on through a changed one."""
        stale = np.zeros(len(self._full), dtype=bool)
        stale[changed] = True
        count = 0
        while (grown := int(np.count_nonzero(stale))) > count:
            count = grown
            stale |= self._full & stale[self._next]
        rows = stale.nonzero()[0]
        each, detour = self._all[: len(rows)], self._detour[rows]
        price = np.full(len(rows), np.inf)
        while True:
            self._price[rows] = price
            through = detour + self._price  # (rows, to)
            onward = through.argmin(axis=1)
            found = through[each, onward]
            better = found < price - CLOSER_MS
            if not better.any():
                break
            price[better] = found[better]
            self._next[rows[better]] = onward[better]
        self._version += 1
