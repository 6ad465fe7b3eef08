"""The planner: a pure function of a fleet and its load to a routing table.

- `problem`: both as arrays, with the law (`never`) and the money (`cost_ms`), and the optimum to compare with.
- `iterative`, `paths`: the region nearest to its maximum offloads a chunk, where that goes, and why.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import numpy as np

from ..fleet import Fleet
from ..load import Load
from ..table import Move, RoutingTable
from .iterative import Placed, reason, solve
from .problem import Problem, state

__all__ = ["Solver", "plan"]

NO_SHARE = 1e-12
"""Shares below this are rounding errors."""

Solver = Literal["iterative", "lp"]


def plan(
    fleet: Fleet,
    load: Load,
    *,
    generated_at: datetime,
    solver: Solver = "iterative",
    version: int = 1,
) -> RoutingTable:
    """Make a routing table. Nothing is remembered: the same input gives the same table.

    All traffic is brought home first, whatever the capacity. Then hot regions offload (`iterative.solve`). What
    cannot be placed stays at home. `unserved_rps` of a region is what it is then asked for above its capacity:
    max(0, load - capacity); what is above its threshold or target but within its capacity it serves.

    What the table says is what Envoy is told: nothing is planned for retries, which go by rings
    (`retries.attempt_groups`).

    Args:
        fleet: regions, distances, policies.
        load: demand and capacity of this moment, in requests per second.
        generated_at: goes into the table, with a time zone.
        solver: `lp` places the same overflow of each source at the least cost, by a linear program.
        version: goes into the table.

    Raises:
        InputError: the load is not of this fleet.
        RoutingError: `lp` without SciPy.
    """
    load.check(fleet)
    problem = state(fleet, load)
    placed = solve(problem)
    if solver == "lp":
        from .problem import least_cost

        placed = Placed(least_cost(problem, placed.flow.sum(axis=1)))
        moves = _direct_moves(problem, placed)
    else:
        moves = tuple(
            Move(
                from_region=problem.names[step.origin],
                to=problem.names[step.to],
                source=problem.names[step.source],
                rps=step.rps,
                ring=int(problem.ring[step.source, step.to]),
                why=reason(problem, step),
            )
            for step in placed.steps
        )
    return RoutingTable(
        version=version,
        generated_at=generated_at,
        shares=_shares(fleet, problem, placed),
        moves=moves,
        unserved_rps=_unserved(fleet, load, problem, placed),
    )


def _direct_moves(problem: Problem, placed: Placed) -> tuple[Move, ...]:
    return tuple(
        Move(
            from_region=problem.names[source],
            to=problem.names[to],
            source=problem.names[source],
            rps=float(placed.flow[source, to]),
            ring=int(problem.ring[source, to]),
            why=f"least cost in sum for the same overflow: {problem.latency_ms[source, to]:.0f} ms",
        )
        for source, to in np.argwhere(placed.flow > problem.tolerance).tolist()
    )


def _shares(fleet: Fleet, problem: Problem, placed: Placed) -> dict[str, dict[str, float]]:
    """Shares in the order of the fleet's file; home is what the others leave of 1."""
    away = placed.flow / problem.load[:, None]
    total = away.sum(axis=1)
    away /= np.maximum(1.0, total)[:, None]  # a sum of many flows may be a rounding error above 1
    np.fill_diagonal(away, np.maximum(0.0, 1.0 - total))
    away[away < NO_SHARE] = 0.0
    order = sorted(range(len(problem.names)), key=lambda i: fleet.names.index(problem.names[i]))
    rows = away.tolist()
    names = problem.names
    return {names[s]: {names[d]: rows[s][d] for d in order if rows[s][d] > 0.0 or s == d} for s in order}


def _unserved(fleet: Fleet, load: Load, problem: Problem, placed: Placed) -> dict[str, float]:
    served = problem.load - placed.flow.sum(axis=1) + placed.flow.sum(axis=0)
    over = served - problem.capacity
    found = {
        name: float(min(rps, load.demand_rps[name])) if rps > problem.tolerance else 0.0
        for name, rps in zip(problem.names, over.tolist(), strict=True)
    }
    return {name: found[name] for name in fleet.names}
