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
        flow: (source, destination), overflow in requests per second.
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
    record = _Record()
    ways: dict[int, tuple[Way, list[Step]]] = {}
    iterations = 0

    def queue(region: int) -> None:
        above = left[region]
        while above and above[-1] <= tolerance:
            above.pop()
        if above:
            # The level first: where a region is so small that a rounding counts, its heat may say otherwise.
            heat = load[region] / capacity[region] if capacity[region] else float("inf")
            heapq.heappush(hottest, (-len(above), -heat, region))

    hottest: list[tuple[int, float, int]] = []
    for region in range(len(load)):
        queue(region)
    while hottest:
        unlocked, _, region = heapq.heappop(hottest)
        if -unlocked <= level:
            level = -unlocked - 1
            paths.reach(problem.thresholds[level][1])
        if region not in ways or not paths.holds(ways[region][0]):
            way = paths.find(region)
            ways[region] = (way, record.steps_of(way, region, level, load[region], paths.room))
        way, moves = ways[region]
        if not way.hops:
            continue
        amount = paths.push(way, min(step[region], left[region][level]))
        for move in moves:
            move.rps += amount
        left[region] = [rps - amount for rps in left[region]]
        load[region] -= amount
        iterations += 1
        queue(region)
    return Placed(paths.flow(), list(record.steps.values()), iterations)


class _Record:
    """Steps of a plan, those of a kind summed."""

    def __init__(self) -> None:
        self.steps: dict[tuple[int, int, int, int, int, bool], Step] = {}

    def steps_of(self, way: Way, cause: int, level: int, load_rps: float, room: list[float]) -> list[Step]:
        """The steps that moves along a way add to."""
        found = []
        for hop in way.hops:
            through = hop is not way.hops[-1]
            key = (hop.source, hop.origin, hop.to, cause, level, through)
            if key not in self.steps:
                self.steps[key] = Step(
                    hop.source, hop.origin, hop.to, cause, level, load_rps, room[hop.to], through=through
                )
            found.append(self.steps[key])
        return found


def reason(problem: Problem, step: Step) -> str:
    """One line for people: how hot the region is, what that unlocks, and why it is this destination."""
    names, latency_ms, ring = problem.names, problem.latency_ms, problem.ring
    to, cause = names[step.to], names[step.cause]
    away = f"{latency_ms[step.source, step.to]:.0f} ms, ring {ring[step.source, step.to]}"
    if step.source != step.cause or step.origin != step.source:
        here = names[step.origin]
        return (
            f"makes room in {here} for {cause}, to which that is the shortest way: overflow of {names[step.source]} "
            f"goes on from {here} ({latency_ms[step.source, step.origin]:.0f} ms) to {to} ({away})"
        )
    if step.through:
        return f"{_heat(problem, step)}; {to} ({away}) is full, and overflow of others moves on from it"
    return f"{_heat(problem, step)}; {to} ({away}) is the nearest with room, {step.room_rps:.2f} rps below its target"


def _heat(problem: Problem, step: Step) -> str:
    share, ring = problem.thresholds[step.level]
    name, capacity = problem.names[step.cause], problem.capacity[step.cause]
    rings = f"rings up to {ring}" if ring > 1 else "ring 1"
    if not capacity:
        return f"{name} has no capacity, which unlocks {rings}"
    heat = f"{100 * step.load_rps / capacity:.1f} %"
    return f"{name} is at {heat} of its capacity, above {100 * share:g} %, which unlocks {rings}"
