"""GPUs by region: enough for each one's own peak, and for the others to carry any one that is lost.

Three floors, the highest of which counts:

- blocking: the fewest GPUs at which Erlang's B is within the goal at the region's own peak;
- heat: the peak stays below the lowest threshold, so that traffic stays at home while no region is lost;
- loss: with any region lost, at any hour of the week, the planner places all of its traffic, which fills no
  region above the target, and blocking is within the goal for such times.

The third is a linear program: the cheapest GPUs such that a flow exists for each loss and hour. It is solved for the
worst hours, then the planner, which is what runs, is asked for all of them; hours that it cannot place join the
program, until none is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from routing.errors import InputError
from routing.fleet import Fleet
from routing.load import Load
from routing.planner import plan
from routing.schema import validated

from ..queueing import erlang_b, gpus_for
from .planning import Planning, Week

_EPOCH = datetime.fromtimestamp(0, UTC)
MOST_GPUS = 1_000_000
"""Of a region, as in a fleet file."""
MOST_RPS = 100_000_000
LEAST_SERVICE_S = 1e-4
_NOTHING_RPS = 1e-6
_MOST_ROUNDS = 60
_PRICE_OF_WAYS = 1e-3
"""Of all of a region's requests over the longest way, in the price of a GPU for an hour."""


@dataclass(frozen=True)
class Sized:
    """GPUs, by region in the order of the fleet.

    Attributes:
        alone: for the own peak: blocking and heat.
        with_loss: for the loss of any region too.
        gpus: with the margin.
        loss_load: highest load share at `with_loss` GPUs, over all losses and hours; 0 without the goal.
        loss_blocking: Erlang's B there.
        loss_hours: {lost region: the hour at which the others are fullest}.
        round_trip_ms: {lost region: mean round trip of its users' requests at that hour}.
    """

    alone: NDArray[np.int64]
    with_loss: NDArray[np.int64]
    gpus: NDArray[np.int64]
    loss_load: NDArray[np.float64]
    loss_blocking: NDArray[np.float64]
    loss_hours: dict[str, int]
    round_trip_ms: dict[str, float]


def size(fleet: Fleet, week: Week, planning: Planning, service_s: float) -> Sized:
    """Find the GPUs.

    Args:
        fleet: regions, distances and thresholds; its GPUs are not read.
        week: demand.
        planning: goal, margin and prices.
        service_s: mean time of a request on a GPU, in s.

    Raises:
        InputError: a region's traffic can be carried by no other.
    """
    return _Sizing(fleet, week, planning, service_s).size()


@dataclass
class _Carried:
    """What the planner does with the loss of each region at each hour.

    Attributes:
        gpus: that there are.
        most_rps: highest requests per second that each region gets.
        unplaced: {(lost region, hour): requests per second that it finds no room for}.
        fullest: {lost region: (most requests per second a GPU of the others, that hour, mean round trip in ms then)}.
    """

    gpus: NDArray[np.int64]
    most_rps: NDArray[np.float64]
    unplaced: dict[tuple[int, int], float] = field(default_factory=dict)
    fullest: dict[int, tuple[float, int, float]] = field(default_factory=dict)


class _Sizing:
    def __init__(self, fleet: Fleet, week: Week, planning: Planning, service_s: float) -> None:
        self._fleet, self._week, self._planning, self._service_s = fleet, week, planning, service_s
        self._names = fleet.names
        self._prices = np.array([planning.prices.of(name) for name in fleet.names])
        self._peaks = week.rps.max(axis=0)
        self._hours = _fullest_hours(week.rps)
        self._reach = {
            i: [
                j
                for j, to in enumerate(fleet.names)
                if j != i and (ring := fleet.ring(name, to)) is not None and ring <= fleet.farthest_ring
            ]
            for i, name in enumerate(fleet.names)
        }

    def size(self) -> Sized:
        self._check()
        alone = self._alone()
        if not self._planning.goal.lose_a_region:
            nothing = np.zeros(len(self._names))
            return Sized(alone, alone, self._with_margin(alone), nothing, nothing, {}, {})
        carried = self._with_loss(alone)
        with_loss = carried.gpus
        load = carried.most_rps * self._service_s / np.maximum(with_loss, 1)
        blocking = [erlang_b(int(c), float(s * c)) if c else 0.0 for c, s in zip(with_loss, load, strict=True)]
        return Sized(
            alone=alone,
            with_loss=with_loss,
            gpus=self._with_margin(with_loss),
            loss_load=load,
            loss_blocking=np.array(blocking),
            loss_hours={self._names[i]: hour for i, (_, hour, _) in carried.fullest.items()},
            round_trip_ms={self._names[i]: trip for i, (_, _, trip) in carried.fullest.items()},
        )

    def _check(self) -> None:
        """See that demand and service time are such that a fleet could have them."""
        if self._service_s < LEAST_SERVICE_S:
            text = f"a request takes {self._service_s:g} s on a GPU, and {LEAST_SERVICE_S:g} s is the least"
            raise InputError(f"{text}; the times of a benchmark are in seconds", key="service_time")
        for name, rps in zip(self._names, self._peaks.tolist(), strict=True):
            if rps * self._service_s > MOST_GPUS or rps > MOST_RPS:
                text = f"{name} would need {rps * self._service_s:.3g} GPUs for {rps:.3g} requests per second"
                most = f"{MOST_GPUS:,} GPUs and {MOST_RPS:,} requests per second are the most of a region"
                raise InputError(f"{text}; {most}; see growth, launches, peak_within and service_time_factor")

    def _with_margin(self, gpus: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([math.ceil(one * (1 + self._planning.margin) - 1e-9) for one in gpus.tolist()], dtype=np.int64)

    def _alone(self) -> NDArray[np.int64]:
        """For blocking and heat at the own peak."""
        coolest = self._fleet.thresholds[0].load
        found = []
        for rps in self._peaks.tolist():
            offered = rps * self._service_s
            for_heat = math.ceil(offered / coolest - 1e-9)
            found.append(max(for_heat, gpus_for(offered, self._planning.goal.blocking)) if offered > 0 else 0)
        return np.array(found, dtype=np.int64)

    def _with_loss(self, alone: NDArray[np.int64]) -> _Carried:
        lost = [i for i, rps in enumerate(self._peaks.tolist()) if rps > 0]
        for i in lost:
            if not self._reach[i]:
                text = f"no region is in a ring of {self._names[i]} that overflow may use, to carry it when it is lost"
                raise InputError(f"{text}; widen rings_ms or thresholds, or set lose_a_region to false", key="goal")
        # First the hours at which most is asked for within the reach of each, and its own peak.
        asked = {i: self._week.rps[:, [i, *self._reach[i]]].sum(axis=1) for i in lost}
        cases = {(i, int(asked[i].argmax())) for i in lost} | {(i, int(self._week.rps[:, i].argmax())) for i in lost}
        gpus = self._cheapest(alone, sorted(cases))
        for _ in range(_MOST_ROUNDS):
            carried = self._carry(gpus, lost)
            new = set(carried.unplaced) - cases
            if new:
                cases |= new
                gpus = np.maximum(gpus, self._cheapest(alone, sorted(cases)))
            elif carried.unplaced:
                # The planner is a little short of the program's optimum: what it leaves over is added next door.
                (i, _), rps = max(carried.unplaced.items(), key=lambda one: one[1])
                gpus = gpus.copy()
                gpus[self._next_door(i)] += max(1, math.ceil(rps * self._service_s / self._fleet.target_load))
            else:
                goal = self._planning.goal.blocking_in_loss
                fuller = [gpus_for(rps * self._service_s, goal) if rps > 0 else 0 for rps in carried.most_rps.tolist()]
                if (np.array(fuller) <= gpus).all():
                    return carried
                gpus = np.maximum(gpus, fuller)
        raise InputError("no number of GPUs was found with which the planner carries each loss", key="goal")

    def _next_door(self, region: int) -> int:
        """The cheapest region that may take its traffic, and of these the nearest."""
        here = self._names[region]
        return min(self._reach[region], key=lambda j: (self._prices[j], self._fleet.latency(here, self._names[j])))

    def _cheapest(self, alone: NDArray[np.int64], cases: list[tuple[int, int]]) -> NDArray[np.int64]:
        """The cheapest GPUs with which a flow exists in each case (lost region, hour)."""
        from scipy.optimize import linprog
        from scipy.sparse import coo_array

        n = len(self._names)
        per_gpu = self._fleet.target_load / self._service_s  # requests per second that a receiver's GPU takes
        columns = n
        rows_eq: list[tuple[int, int, float]] = []
        rows_ub: list[tuple[int, int, float]] = []
        trips: list[float] = []
        right_eq: list[float] = []
        right_ub: list[float] = []
        for k, (lost, hour) in enumerate(cases):
            right_eq.append(self._week.rps[hour, lost])
            for to in self._reach[lost]:
                rows_eq.append((k, columns, 1.0))
                at = len(right_ub)
                rows_ub += [(at, columns, 1.0), (at, to, -per_gpu)]
                right_ub.append(-self._week.rps[hour, to])
                trips.append(self._fleet.latency(self._names[lost], self._names[to]))
                columns += 1

        def matrix(entries: list[tuple[int, int, float]], height: int) -> object:
            row, column, value = (list(part) for part in zip(*entries, strict=True))
            return coo_array((value, (row, column)), shape=(height, columns)).tocsr()

        found = linprog(
            # Of plans that cost the same, the one that sends requests less far.
            np.concatenate([self._prices, _PRICE_OF_WAYS * np.array(trips) / max(trips) / max(right_eq)]),
            A_eq=matrix(rows_eq, len(right_eq)),
            b_eq=right_eq,
            A_ub=matrix(rows_ub, len(right_ub)),
            b_ub=right_ub,
            bounds=[(float(one), None) for one in alone] + [(0.0, None)] * (columns - n),
            method="highs",
        )
        if found.status != 0:
            raise InputError(f"the linear program has no solution: {found.message}", key="goal")
        return np.array([math.ceil(one - 1e-6) for one in found.x[:n].tolist()], dtype=np.int64)

    def _served(self, gpus: NDArray[np.int64], lost: int, hour: int) -> tuple[NDArray[np.float64], float, float]:
        """Requests per second that each region gets with one lost, what is unserved, and the mean round trip in ms
        of the lost region's requests.
        """
        demand = dict(zip(self._names, self._week.rps[hour].tolist(), strict=True))
        capacity = dict(zip(self._names, (gpus / self._service_s).tolist(), strict=True))
        capacity[self._names[lost]] = 0.0
        load = validated(Load, {"demand_rps": demand, "capacity_rps": capacity})
        table = plan(self._fleet, load, generated_at=_EPOCH)
        served = np.zeros(len(self._names))
        for source, row in table.shares.items():
            for to, share in row.items():
                served[self._names.index(to)] += share * demand[source]
        row = table.shares[self._names[lost]]
        trip = sum(share * self._fleet.latency(self._names[lost], to) for to, share in row.items())
        return served, sum(table.unserved_rps.values()), trip

    def _carry(self, gpus: NDArray[np.int64], lost: list[int]) -> _Carried:
        """Ask the planner for the loss of each region at each hour."""
        carried = _Carried(gpus, np.zeros(len(self._names)))
        least = _NOTHING_RPS * max(1.0, self._peaks.sum())
        for i in lost:
            for hour in self._hours:
                served, over, trip = self._served(gpus, i, hour)
                if over > least:
                    carried.unplaced[i, hour] = over
                served[i] = 0.0
                carried.most_rps = np.maximum(carried.most_rps, served)
                share = float(served.sum()) / max(1, int(gpus.sum() - gpus[i]))
                carried.fullest[i] = max(carried.fullest.get(i, (-1.0, 0, 0.0)), (share, hour, trip))
        return carried


def _fullest_hours(rps: NDArray[np.float64]) -> list[int]:
    """Hours but those at which another one asks for as much or more in each region: what can be carried then can be
    carried at these too.
    """
    more = (rps[:, None, :] >= rps[None, :, :]).all(axis=2) & (rps[:, None, :] > rps[None, :, :]).any(axis=2)
    return [int(hour) for hour in np.flatnonzero(~more.any(axis=0))]
