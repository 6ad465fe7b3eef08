"""The decisions: a pure state machine. It knows no clock, no network and no file, so that simulations run it too."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property

from ..fleet import Fleet
from ..load import Load
from ..metrics.observation import UNSEEN, Observation, RegionSeen
from ..planner import plan
from ..schema import validated
from ..table import RoutingTable
from .state import (
    EPSILON,
    NO_BURST,
    NO_ORDERS,
    BurstPolicy,
    Change,
    ControlState,
    Decision,
    Estimate,
    HoldReason,
    Orders,
    RegionState,
    Shares,
    Sign,
    largest_change,
    next_burst,
    no_more_than_now,
    step,
)

Planner = Callable[[Fleet, Load], RoutingTable]

_NO_TIME = datetime.fromtimestamp(0, UTC)  # who publishes a table says when
_SAME = 1e-6  # a share is published as a weight of a million


def plan_now(fleet: Fleet, load: Load) -> RoutingTable:
    """The planner, as the loop uses it."""
    return plan(fleet, load, generated_at=_NO_TIME)


@dataclass(frozen=True)
class Controller:
    """Makes a decision of each observation, by the numbers of the fleet file.

    Attributes:
        fleet: whose traffic it is.
        planner: a pure function.
        warm_up_s: time for which a loop that has just started only looks; None: half of `smoothing_s`, so that the
            estimate rests on a window as long as that.
    """

    fleet: Fleet
    planner: Planner = plan_now
    warm_up_s: float | None = None

    def at_home(self) -> RoutingTable:
        """The table to begin with: all traffic at home."""
        return self.planner(self.fleet, Load.of(self.fleet, {}))

    def start(self, rows: Shares) -> ControlState:
        """The state before the first round, with shares as they are published."""
        known = {source: dict(row) for source, row in rows.items()}
        return ControlState(known, {name: RegionState() for name in self.fleet.names})

    def step(
        self, state: ControlState, observation: Observation, now: float, orders: Orders = NO_ORDERS
    ) -> tuple[ControlState, Decision]:
        """One round.

        Args:
            state: after the last one.
            observation: of this one.
            now: seconds of a clock that never goes back; only differences count.
            orders: of operators, and what agents have measured.

        Returns:
            The state after it, and what is to be done.
        """
        started_at = now if state.started_at is None else state.started_at
        regions = {name: self._learn(name, state.regions[name], observation, now) for name in self.fleet.names}
        stale = tuple(name for name, known in regions.items() if self._is_stale(known.demand, now, started_at))
        regions = {n: replace(known, burst=NO_BURST) if n in stale else known for n, known in regions.items()}
        # A loop that has just started knows too little to be followed, whatever it says.
        unknown = tuple(n for n, one in regions.items() if n not in stale and not self._is_watched(one))
        warming = () if state.warm else unknown
        new = replace(state, regions=regions, started_at=started_at)
        delay = self.fleet.retry.delay
        delays = {n: delay.burst_share if one.burst.since is not None else delay.share for n, one in regions.items()}
        if 2 * len(stale) >= len(regions):
            # With half of the demand unknown, what the rest should do is a guess.
            why = f"{len(stale)} of {len(regions)} regions not heard of for {self.fleet.stale_after_s:g} s"
            return new, Decision(state.rows, frozen=why, stale=stale, delays=delays, warming=warming)
        new = replace(new, warm=state.warm or not warming)
        if orders.frozen:
            kept = Decision(state.rows, frozen=orders.frozen, by_operator=True, stale=stale, delays=delays)
            return new, replace(kept, warming=warming)
        fleet = self.fleet.with_latencies(orders.latency_ms) if orders.latency_ms else self.fleet
        planned = self.planner(fleet, self.load(new, stale, orders.drained))
        away = {move.source for move in planned.moves}
        home_since = {name: state.home_since.get(name, now) for name in self.fleet.names if name not in away}
        new = replace(new, home_since=home_since)
        decision = self._decide(new, planned, stale, orders.drained, now)
        moving = frozenset(
            source
            for source, target in decision.targets.items()
            if source not in decision.held and largest_change(decision.rows[source], target) > _SAME
        )
        decision = replace(decision, stale=stale, delays=delays, warming=warming)
        return replace(new, rows=decision.rows, moving=moving), decision

    def load(self, state: ControlState, fixed: Collection[str] = (), drained: Collection[str] = ()) -> Load:
        """Demand and capacity as they are believed now, for the planner. Capacity that was never measured is the
        fleet file's; demand that never was is none.

        Args:
            state: what is known.
            fixed: sources whose rows stay as they are. What they send is no longer to be planned, so it is taken
                from both sides: from their demand, and from the capacity of those who get it. x jobs per second
                fill a region as much as if its capacity were smaller by x / target_load.
            drained: regions that are to get no jobs: their capacity counts as none.
        """
        demand, capacity = {}, {}
        for name, known in state.regions.items():
            demand[name] = max(0.0, known.demand.value) if known.demand else 0.0
            capacity[name] = known.capacity.value if known.capacity else self.fleet.capacity_rps(name)
            if name in drained:
                capacity[name] = 0.0
        for source in fixed:
            sent = demand[source]
            for to, share in state.rows[source].items():
                if to != source:
                    capacity[to] = max(0.0, capacity[to] - share * sent / self.fleet.target_load)
            demand[source] = state.rows[source].get(source, 0.0) * sent
        return validated(Load, {"demand_rps": demand, "capacity_rps": capacity})

    def _learn(self, name: str, known: RegionState, observation: Observation, now: float) -> RegionState:
        seen = observation.regions.get(name, UNSEEN)
        if seen.demand_rps is None and seen.capacity_rps is None:
            return known
        tau_s = self.fleet.smoothing_s
        demand, retries, capacity, burst = known.demand, known.retries, known.capacity, known.burst
        if seen.demand_rps is not None:
            # What is usual must be known first.
            if self._is_watched(known) and not seen.edge_gone:
                burst = next_burst(burst, self._sign(name, seen, known), now, self._bursts)
            # Edges that are gone count nothing: there was no demand since they were.
            over_s = now - demand.at if seen.edge_gone and demand is not None else seen.over_s
            demand = _followed(demand, seen.demand_rps, now, over_s, tau_s)
            retries = _followed(retries, seen.retries_rps or 0.0, now, over_s, tau_s)
        if seen.capacity_rps is not None:
            if capacity is None:
                capacity = Estimate(seen.capacity_rps, now, 1.0)
            else:
                capacity = capacity.rising_slowly(seen.capacity_rps, now, tau_s)
        return RegionState(demand, retries, capacity, burst, seen)

    def _sign(self, name: str, seen: RegionSeen, known: RegionState) -> Sign:
        capacity = known.capacity.value if known.capacity else self.fleet.capacity_rps(name)
        return Sign(
            demand_rps=seen.demand_rps or 0.0,
            usual_rps=known.demand.value if known.demand else 0.0,
            room_rps=self.fleet.target_load * capacity,
            retries_rps=seen.retries_rps or 0.0,
            usual_retries_rps=known.retries.value if known.retries else 0.0,
            seconds=seen.over_s,
        )

    def _is_watched(self, known: RegionState) -> bool:
        """Whether a region was watched for as long as its demand must be, to decide anything."""
        return known.demand is not None and known.demand.weight >= self._warm

    def _is_stale(self, known: Estimate | None, now: float, started_at: float) -> bool:
        return now - (known.at if known else started_at) > self.fleet.stale_after_s

    def _decide(
        self, state: ControlState, planned: RoutingTable, stale: tuple[str, ...], drained: frozenset[str], now: float
    ) -> Decision:
        assert state.started_at is not None
        unsure = frozenset(
            name for name, known in state.regions.items() if self._is_stale(known.capacity, now, state.started_at)
        )
        targets: dict[str, dict[str, float]] = {}
        held: dict[str, HoldReason] = {}
        free: dict[str, dict[str, float]] = {}
        for source, row in state.rows.items():
            target = no_more_than_now(row, planned.shares[source], unsure, source)
            targets[source] = target
            change = largest_change(row, target)
            if change <= _SAME:
                continue  # not even its last digits: rows are what is published, to the letter
            if why := self._held(source, change, target, state, stale, drained, now):
                held[source] = why
            else:
                free[source] = target
        part, rows = step(state.rows, free, self.fleet.max_step)
        return Decision(
            rows=rows,
            changes=changes(state.rows, rows),
            targets=targets,
            moves=planned.moves,
            unserved_rps=planned.unserved_rps,
            held=held,
            step=part,
        )

    def _held(
        self,
        source: str,
        change: float,
        target: Mapping[str, float],
        state: ControlState,
        stale: tuple[str, ...],
        drained: frozenset[str],
        now: float,
    ) -> HoldReason | None:
        """Why a row stays as it is, although its target is another."""
        row, known = state.rows[source], state.regions[source]
        if source in stale:
            return HoldReason("stale", f"not heard of for {self.fleet.stale_after_s:g} s")
        if known.seen.edge_gone:
            return HoldReason("edge_gone", "nobody listens at its edges")
        if not self._is_watched(known):
            return HoldReason("warming_up", "not watched for long enough")
        if source in state.moving or change >= self.fleet.hysteresis:
            return None
        at_home_s = now - state.home_since.get(source, now)
        if at_home_s >= self.fleet.smoothing_s and change >= self.fleet.hysteresis / 10:
            return None  # the last two percent come home as well, once it is sure that they may
        for to, share in row.items():
            capacity = state.regions[to].capacity
            dead = to in drained or (capacity is not None and capacity.value <= 0)
            if dead and share > target.get(to, 0.0) + EPSILON:
                return None  # what goes to a dead region is not too little to matter
        return HoldReason("hysteresis", f"a change of {change:.3f} is below {self.fleet.hysteresis:g}")

    @property
    def _warm(self) -> float:
        # A little less than the time says, for the rounds do not fall on it exactly.
        warm_up_s = self.fleet.smoothing_s / 2 if self.warm_up_s is None else self.warm_up_s
        return Estimate.first(0.0, 0.0, 0.95 * warm_up_s, self.fleet.smoothing_s).weight

    @cached_property
    def _bursts(self) -> BurstPolicy:
        # As long as smoothing takes to see a lasting rise as the new usual.
        together = max(1, self.fleet.retry.attempts - 1)
        return BurstPolicy(calm_s=self.fleet.smoothing_s, retries_together=together)


def _followed(known: Estimate | None, value: float, now: float, over_s: float, tau_s: float) -> Estimate:
    if known is None:
        return Estimate.first(value, now, over_s, tau_s)
    return known.followed(value, now, over_s, tau_s)


def changes(before: Shares, after: Shares) -> tuple[Change, ...]:
    """Shares that differ, as far as a published table shows it."""
    found = []
    for source, row in after.items():
        old = before.get(source, {})
        for to in {**old, **row}:
            was, is_now = old.get(to, 0.0), row.get(to, 0.0)
            if abs(was - is_now) > _SAME:
                found.append(Change(source, to, was, is_now))
    return tuple(found)
