"""Fleet and load as arrays, which is what the solvers plan on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import RoutingError
from ..fleet import Fleet
from ..load import Load

Floats = NDArray[np.float64]

EPSILON_RPS = 1e-6
"""One request in twelve days. A source without demand is planned as if it had this: should it have a request after
all, the request finds its way, which matters where all GPUs at home are down. A capacity below it is none."""

STEPS_MOST = 1000
"""A region offloads in at most this many chunks at a threshold, however far its demand is above its capacity."""


@dataclass(frozen=True)
class Problem:
    """One fleet at one moment. Arrays are over regions in the order of their names; rates in requests per second.

    Attributes:
        names: sorted, so that no order of a file or a dictionary shows in a plan.
        latency_ms: (source, destination), round trips.
        cost_ms: (source, destination), round trips and the price of the destination, weighed (`Fleet.money`).
        ring: (source, destination); beyond the last ring, and where `Fleet.never` forbids it, it is one more than
            there are.
        capacity: (region,)
        load: (region,), what each serves with all traffic at home: its demand, at least `EPSILON_RPS`.
        room: (region,), what each can take of others before it is above the target; 0 for a hot region.
        thresholds: (load share, ring), coolest first.
        excess: (threshold, region), what each has above a threshold. A region is hot where `excess[0]` is not 0.
        step: (region,), what each offloads in one iteration.
        tolerance: rates below this are nothing.
    """

    names: tuple[str, ...]
    latency_ms: Floats
    cost_ms: Floats
    ring: NDArray[np.int64]
    capacity: Floats
    load: Floats
    room: Floats
    thresholds: tuple[tuple[float, int], ...]
    excess: Floats
    step: Floats
    tolerance: float


def state(fleet: Fleet, load: Load) -> Problem:
    """Return the problem that a fleet and its load are."""
    names = tuple(sorted(fleet.regions))
    latency_ms = np.array([[row[to] for to in names] for row in map(fleet.latencies, names)])
    ring = np.searchsorted(fleet.rings_ms, latency_ms) + 1
    for source, regions in fleet.never.items():
        ring[names.index(source), [names.index(to) for to in regions]] = len(fleet.rings_ms) + 1
    np.fill_diagonal(ring, 0)
    capacity = np.array([load.capacity_rps[name] for name in names], dtype=float)
    capacity[capacity < EPSILON_RPS] = 0.0
    demand = np.maximum([load.demand_rps[name] for name in names], EPSILON_RPS)
    thresholds = tuple((threshold.load, threshold.ring) for threshold in fleet.thresholds)
    tolerance = 1e-12 * max(1e3, demand.max(), capacity.max())
    levels = np.array([[share] for share, _ in thresholds]) * capacity
    hot = demand > levels[0] + tolerance
    excess = np.where(hot, np.clip(demand - levels, 0.0, demand), 0.0)
    # A region without GPUs has no capacity to take a part of: a part of its overflow is as good.
    step = np.maximum(fleet.chunk * capacity, excess[0] / STEPS_MOST)
    return Problem(
        names=names,
        latency_ms=latency_ms,
        cost_ms=latency_ms + fleet.money.weight_ms * np.array([fleet.price(name) for name in names]),
        ring=ring,
        capacity=capacity,
        load=demand,
        room=np.where(hot, 0.0, np.maximum(0.0, fleet.target_load * capacity - demand)),
        thresholds=thresholds,
        excess=excess,
        step=np.where(capacity > 0, step, fleet.chunk * excess[0]),
        tolerance=tolerance,
    )


def least_cost(problem: Problem, overflow: Floats, *, by_home_load: bool = False) -> Floats:
    """Return the flow of least cost for a given overflow of each source.

        minimise    sum over s, d of  cost_ms[s, d] * x[s, d]
        such that   sum over d of x[s, d] = overflow[s]
                    sum over s of x[s, d] <= room[d]
                    sum over d beyond ring r_k of s of x[s, d] <= what s has above the threshold that unlocks more

    Args:
        problem: rings, rooms and thresholds.
        overflow: (source,) in requests per second, such that there is a flow.
        by_home_load: a looser reach: all overflow of a source may use each ring that its load at home unlocks.

    Returns:
        (source, destination), requests per second.

    Raises:
        RoutingError: SciPy is not installed, or there is no such flow.
    """
    try:
        from scipy import sparse
        from scipy.optimize import linprog
    except ImportError as error:
        raise RoutingError("the solver lp needs SciPy: pip install 'stillmotion[laboratory]'") from error
    flow = np.zeros_like(problem.latency_ms)
    reach = np.zeros(len(problem.names), dtype=np.int64)
    for (_, ring), excess in zip(problem.thresholds, problem.excess, strict=True):
        reach[excess > problem.tolerance] = ring
    allowed = (problem.ring > 0) & (problem.ring <= reach[:, None]) & (problem.room > 0) & (overflow > 0)[:, None]
    source, to = np.nonzero(allowed)
    if not source.size:
        return flow
    # In units of the mean overflow, since the solver's tolerances are absolute.
    unit = overflow.sum() / np.count_nonzero(overflow)
    variable, ones = np.arange(len(source)), np.ones(len(source))
    senders, row = np.unique(source, return_inverse=True)
    equal = sparse.csr_array((ones, (row, variable)), shape=(len(senders), len(source)))
    rows = [_Rows(to, ones.astype(bool), problem.room)]
    if not by_home_load:
        beyond = [problem.ring[source, to] > ring for _, ring in problem.thresholds[:-1]]
        rows += [_Rows(source, far, above) for far, above in zip(beyond, problem.excess[1:], strict=True)]
    limits = [
        sparse.csr_array((ones[one.chosen], (one.region[one.chosen], variable[one.chosen])), (len(flow), len(source)))
        for one in rows
    ]
    # The overflow has the rounding errors of many chunks: a hair of slack keeps the program feasible.
    slack = 1e-9
    found = linprog(
        problem.cost_ms[source, to],
        A_ub=sparse.vstack(limits),
        b_ub=np.concatenate([one.limit for one in rows]) / unit + slack,
        A_eq=equal,
        b_eq=overflow[senders] / unit,
        method="highs",
    )
    if not found.success:
        raise RoutingError(f"the linear program has no solution: {found.message}")
    flow[source, to] = np.maximum(0.0, found.x) * unit
    return flow


@dataclass(frozen=True)
class _Rows:
    """One inequality a region: the sum of the chosen variables that are of it is within its limit.

    Attributes:
        region: (variable,)
        chosen: (variable,)
        limit: (region,)
    """

    region: np.ndarray
    chosen: np.ndarray
    limit: Floats
