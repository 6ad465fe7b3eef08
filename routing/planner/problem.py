"""Fleet and load as arrays: what the solvers plan on, with the floor share taken off already."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..fleet import Fleet
from ..load import Load

Floats = NDArray[np.float64]

TRICKLE_RPS = 1e-6
"""One request in twelve days. A source without demand is planned as if it had this: should it have a request after
all, the request finds its way, which matters where all GPUs at home are down. A capacity below it is none."""

FLOOR_MOST = 0.1
"""Most of a source's requests that floors take together: with more than ten regions in reach at 1 %, each gets less."""

STEPS_MOST = 1000
"""A region offloads in at most this many chunks at a threshold, however far its demand is above its capacity."""


@dataclass(frozen=True)
class Problem:
    """One fleet at one moment. Arrays are over regions in the order of their names; rates in requests per second.

    Attributes:
        names: sorted, so that no order of a file or a dictionary shows in a plan.
        latency_ms: (source, destination), round trips.
        ring: (source, destination); beyond the last ring it is one more than there are.
        capacity: (region,)
        demand: (region,), at least `TRICKLE_RPS`.
        floor: (source, destination), what the floor share sends away before anything else; 0 at home.
        load: (region,), what each serves with all traffic at home but the floor.
        room: (region,), what each can take of others before it is above the target; 0 for a hot region.
        thresholds: (load share, ring), coolest first.
        excess: (threshold, region), what each has above a threshold of its own users' traffic. A region is hot
            where `excess[0]` is not 0.
        step: (region,), what each offloads in one iteration.
        tolerance: rates below this are nothing.
    """

    names: tuple[str, ...]
    latency_ms: Floats
    ring: NDArray[np.int64]
    capacity: Floats
    demand: Floats
    floor: Floats
    load: Floats
    room: Floats
    thresholds: tuple[tuple[float, int], ...]
    excess: Floats
    step: Floats
    tolerance: float


def state(fleet: Fleet, load: Load, *, floor: bool) -> Problem:
    """The problem that a fleet and its load are."""
    names = tuple(sorted(fleet.regions))
    latency_ms = np.array([[row[to] for to in names] for row in map(fleet.latencies, names)])
    ring = np.searchsorted(fleet.rings_ms, latency_ms) + 1
    np.fill_diagonal(ring, 0)
    capacity = np.array([load.capacity_rps[name] for name in names], dtype=float)
    capacity[capacity < TRICKLE_RPS] = 0.0
    demand = np.maximum([load.demand_rps[name] for name in names], TRICKLE_RPS)
    target = fleet.target_load * capacity
    reachable = (ring > 0) & (ring <= fleet.farthest_ring)
    sent = _floor(fleet.floor_share, reachable, demand, capacity, target) if floor else np.zeros_like(latency_ms)
    at_home = demand - sent.sum(axis=1)
    served = at_home + sent.sum(axis=0)
    thresholds = tuple((threshold.load, threshold.ring) for threshold in fleet.thresholds)
    tolerance = 1e-12 * max(1e3, demand.max(), capacity.max())
    levels = np.array([[share] for share, _ in thresholds]) * capacity
    hot = np.minimum(demand, served) > levels[0] + tolerance
    excess = np.where(hot, np.clip(served - levels, 0.0, at_home), 0.0)
    # A region without GPUs has no capacity to take a part of: a part of its overflow is as good.
    step = np.maximum(fleet.chunk * capacity, excess[0] / STEPS_MOST)
    return Problem(
        names=names,
        latency_ms=latency_ms,
        ring=ring,
        capacity=capacity,
        demand=demand,
        floor=sent,
        load=served,
        room=np.where(hot, 0.0, np.maximum(0.0, target - served)),
        thresholds=thresholds,
        excess=excess,
        step=np.where(capacity > 0, step, fleet.chunk * excess[0]),
        tolerance=tolerance,
    )


def _floor(share: float, reachable: NDArray[np.bool_], demand: Floats, capacity: Floats, target: Floats) -> Floats:
    """What the floor share sends from each source to each destination, (source, destination).

    Any two regions exchange the smaller of their floors, which changes the load of neither. What the source with
    the larger floor has beyond that goes only where there is room, in proportion where it is short: so no region
    gets above its target by it, however small it is beside the others. A region without GPUs gets none.
    """
    allowed = reachable & (capacity > 0)
    count = np.maximum(1, allowed.sum(axis=1))
    wanted = np.where(allowed, (np.minimum(share, FLOOR_MOST / count) * demand)[:, None], 0.0)
    exchanged = np.minimum(wanted, wanted.T)
    further = wanted - exchanged
    asked = further.sum(axis=0)
    room = np.maximum(0.0, target - demand)
    fits: Floats = np.minimum(1.0, room / np.where(asked > 0, asked, 1.0))
    return exchanged + further * fits
