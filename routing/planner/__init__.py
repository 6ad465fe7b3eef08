"""The planner: a pure function of fleet and load."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from ..fleet import Fleet
from ..load import Load
from ..table import Move, RoutingTable

Solver = Literal["iterative", "lp"]


def plan(
    fleet: Fleet,
    load: Load,
    *,
    generated_at: datetime,
    solver: Solver = "iterative",
    floor: bool = True,
    version: int = 1,
) -> RoutingTable:
    """Make a routing table. A first version, nearest first, that others build on while the real one is made."""
    load.check(fleet)
    assert solver == "iterative"
    left = dict(load.demand_rps)
    room = {n: max(0.0, fleet.target_load * load.capacity_rps[n] - left[n]) for n in fleet.regions}
    flows = {n: {n: left[n]} for n in fleet.regions}
    moves = []
    for threshold in reversed(fleet.thresholds):
        for source in sorted(fleet.regions, key=lambda n: (-left[n] / max(load.capacity_rps[n], 1e-9), n)):
            for ring, names in list(enumerate(fleet.rings(source)))[1 : threshold.ring + 1]:
                for to in names:
                    amount = min(room[to], left[source] - threshold.load * load.capacity_rps[source])
                    if amount > 0:
                        room[to] -= amount
                        left[source] -= amount
                        flows[source][to] = flows[source].get(to, 0.0) + amount
                        why = f"{source} is above {threshold.load:.0%} of its capacity; {to} has room"
                        moves.append(Move(from_region=source, to=to, source=source, rps=amount, ring=ring, why=why))
            flows[source][source] = left[source]
    shares = {}
    for source, row in flows.items():
        total = sum(row.values())
        shares[source] = {to: x / total for to, x in row.items() if x > 0} if total > 0 else {source: 1.0}
        others = [n for ring in fleet.rings(source)[1 : fleet.farthest_ring + 1] for n in ring] if floor else []
        for to in others:
            missing = max(0.0, fleet.floor_share - shares[source].get(to, 0.0))
            shares[source][to] = shares[source].get(to, 0.0) + missing
            shares[source][source] -= missing
    over = {n: max(0.0, left[n] - load.capacity_rps[n]) for n in fleet.regions}
    return RoutingTable(
        version=version, generated_at=generated_at, shares=shares, moves=tuple(moves), left_over_rps=over
    )
