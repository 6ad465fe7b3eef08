"""The iterative planner: the region nearest to its maximum offloads a chunk, again and again."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from .paths import Paths, Way
from .problem import Floats, Problem


@dataclass
class Step:
    """Moves of one kind, summed.

    Attributes:
        source: whose overflow moves.
        origin, to: from where (the source itself, or a region that it had gone to), and where to.
        cause: the hot region that the move is for; another than `source` where that one makes room.
        level: of heat, an index into the thresholds.
        load_rps: of the cause, before the first of these moves.
        room_rps: of `to`, before the first of these moves.
        rps: moved in sum.
        through: whether room had to be made in `to` first.
    """

    source: int
    origin: int
    to: int
    cause: int
    level: int
    load_rps: float
    room_rps: float
    through: bool
    rps: float = 0.0


@dataclass
class Placed:
    """What a solver found.

    Attributes:
        flow: (source, destination), overflow in requests per second; the floor is not in it.
        steps: that lead from all traffic at home to it.
        iterations: chunks that were moved.
    """

    flow: Floats
    steps: list[Step] = field(default_factory=list)
    iterations: int = 0


def solve(problem: Problem, *, exchange: bool = True) -> Placed:
    """Bring all traffic home, then relieve the region nearest to its maximum until no one is hot or nothing moves.

    The loop is that of Meta's "How Meta animates AI-generated images at scale" (2024), on the rings of
    ServiceRouter (OSDI '23):

        take the region with the highest load / capacity; its heat unlocks rings, the hotter the farther
        move a chunk of its own users' traffic to the nearest region that stays below the target load
        a region that finds none stays as hot as it is

    A chunk ends at a threshold, so that a region cools down to it exactly. "Nearest" counts what others lose
    by it (see `Paths`): a full region takes a chunk too, where overflow of another source moves on from it to a
    region that is allowed at this heat, and that is the shortest way in sum. Receivers are never hot and hot
    regions never receive, so that overflow meets no locals that had to leave for it.

    It ends: each turn moves a chunk, fills a region, ends the flow of a source to a region, or takes a region out
    for good, since a region that no way leads out of has none later.

    Args:
        problem: fleet and load.
        exchange: whether overflow that is placed may move on; without, it is plain nearest first.
    """
    paths, tolerance = Paths(problem, exchange=exchange), problem.tolerance
    capacity, step, load = (array.tolist() for array in (problem.capacity, problem.step, problem.load))
    # What each region still has to move, by level; the highest level with something left is its heat.
    left = problem.excess.T.tolist()
    level = len(problem.thresholds)
    steps: dict[tuple[int, int, int, int, int, bool], Step] = {}
    ways: dict[int, tuple[Way, list[Step]]] = {}
    iterations = 0

    def explained(way: Way, cause: int) -> list[Step]:
        found = []
        for hop in way.hops:
            through = hop is not way.hops[-1]
            key = (hop.source, hop.origin, hop.to, cause, level, through)
            if key not in steps:
                at, room = load[cause], paths.room[hop.to]
                steps[key] = Step(hop.source, hop.origin, hop.to, cause, level, at, room, through)
            found.append(steps[key])
        return found

    def heat(region: int) -> float:
        return load[region] / capacity[region] if capacity[region] else float("inf")

    hottest = [(-heat(region), region) for region, above in enumerate(left) if above[0] > tolerance]
    heapq.heapify(hottest)
    while hottest:
        _, region = heapq.heappop(hottest)
        above = left[region]
        while above and above[-1] <= tolerance:
            above.pop()
        if not above:
            continue
        if len(above) <= level:  # never up again, not even by a rounding: flows are the best for the rings so far
            level = len(above) - 1
            paths.reach(problem.thresholds[level][1])
        if region not in ways or not paths.holds(ways[region][0]):
            way = paths.find(region)
            ways[region] = (way, explained(way, region))
        way, moves = ways[region]
        if not way.hops:
            continue
        amount = paths.push(way, min(step[region], above[level]))
        for move in moves:
            move.rps += amount
        above[:] = [rps - amount for rps in above]
        load[region] -= amount
        iterations += 1
        heapq.heappush(hottest, (-heat(region), region))
    return Placed(paths.flow(), list(steps.values()), iterations)
