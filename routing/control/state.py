"""What the loop remembers and decides: estimates that follow what is measured, shares that follow what is planned in
bounded steps, bursts, and the state from round to round.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import exp, sqrt
from typing import Literal

from ..metrics.observation import UNSEEN, RegionSeen
from ..table import Move

Row = Mapping[str, float]
"""Shares of one source's requests, by destination; they sum to 1. Shares of 0 are left out, but for home."""
Shares = Mapping[str, Row]

EPSILON = 1e-9
"""Shares below it are rounding, not traffic."""


@dataclass(frozen=True)
class Estimate:
    """A smoothed value.

    What was known fades with exp(-t / tau); a measurement that covers dt seconds weighs 1 - exp(-dt / tau). So
    two measurements of dt are worth one of 2 dt. At first, while little is known, the value is the plain mean
    of what was measured: otherwise the very first measurement would count for as long as tau.

    Attributes:
        value: smoothed.
        at: monotonic seconds of the last measurement.
        weight: of all that was measured, 0 to 1: 1 - exp(-t / tau) after t seconds without a gap.
    """

    value: float
    at: float
    weight: float

    @classmethod
    def first(cls, value: float, at: float, seconds: float, tau_s: float) -> Estimate:
        """Of one measurement, which covers so many seconds."""
        return cls(value, at, _part(seconds, tau_s))

    def followed(self, value: float, at: float, seconds: float, tau_s: float) -> Estimate:
        """After one more measurement.

        Args:
            value: measured.
            at: when; before the last one it changes nothing.
            seconds: that it covers.
            tau_s: time constant.
        """
        part = _part(seconds, tau_s)
        if at <= self.at or part <= 0:
            return self
        kept = self.weight * (1.0 - _part(at - self.at, tau_s))
        weight = kept + part
        return Estimate((kept * self.value + part * value) / weight, at, min(weight, 1.0))

    def rising_slowly(self, value: float, at: float, tau_s: float) -> Estimate:
        """As `followed`, but at once for what falls: capacity that is gone is gone, and that comes back may go
        again.
        """
        if value < self.value:
            return Estimate(value, max(at, self.at), 1.0)
        return Estimate(self.value, self.at, 1.0).followed(value, at, at - self.at, tau_s)


def _part(seconds: float, tau_s: float) -> float:
    return 1.0 - exp(-max(0.0, seconds) / tau_s)


def largest_change(row: Row, target: Row) -> float:
    """The share that differs most."""
    return max((abs(target.get(to, 0.0) - row.get(to, 0.0)) for to in {**row, **target}), default=0.0)


def step(rows: Shares, targets: Shares, max_step: float) -> tuple[float, dict[str, dict[str, float]]]:
    """Go towards the targets, with no share changed by more than `max_step`.

    All rows go the same part of their way. So each region's load goes straight from what it is to what is
    planned, and on the way no region has more than at the worse end: were each row to go as fast as it may, a
    region could be given new overflow before it is rid of the old.

    Args:
        rows: as they are, each of which sums to 1.
        targets: for some or all of them, likewise.
        max_step: above 0.

    Returns:
        The part of the way that is gone, 0 to 1, and all rows. After ceil(largest change / max_step) steps they
        are the targets.
    """
    farthest = max((largest_change(rows[source], target) for source, target in targets.items()), default=0.0)
    part = min(1.0, max_step / farthest) if farthest > 0 else 1.0
    after = {source: dict(row) for source, row in rows.items()}
    for source, target in targets.items():
        after[source] = _between(source, rows[source], target, part)
    return part, after


def _between(home: str, row: Row, target: Row, part: float) -> dict[str, float]:
    if part >= 1.0:
        return dict(target)
    mixed = {to: row.get(to, 0.0) + part * (target.get(to, 0.0) - row.get(to, 0.0)) for to in {**row, **target}}
    kept = {to: max(share, 0.0) for to, share in mixed.items() if share > EPSILON or to == home}
    total = sum(kept.values())
    return {to: share / total for to, share in kept.items()}


def no_more_than_now(row: Row, target: Row, regions: frozenset[str], home: str) -> dict[str, float]:
    """The target, but with no more than now for some regions; what they do not get stays at home.

    Args:
        row: as it is.
        target: as planned.
        regions: that get no more; `home` always may.
        home: the row's own region.
    """
    found = dict(target)
    for to in regions - {home}:
        surplus = found.get(to, 0.0) - row.get(to, 0.0)
        if surplus > 0:
            found[to] -= surplus
            found[home] = found.get(home, 0.0) + surplus
    return {to: share for to, share in found.items() if share > EPSILON or to == home}


ROUND_TRIPS_KEPT = 5
"""Reports of a round trip whose median counts: one that met a busy machine moves nothing."""
ROUND_TRIP_OFF, ROUND_TRIP_OFF_MS = 0.1, 2.0
"""A round trip in use is replaced where the measured one is off by more than both, so that noise at the edge of a ring
moves no traffic."""


@dataclass
class RoundTrips:
    """Round trips that agents have measured, in place of those of the fleet file.

    Attributes:
        given: round trip of the fleet file, in ms, from source to destination.
        used: {source: {destination: ms}}, only where they differ from the given ones by enough.
    """

    given: Callable[[str, str], float]
    used: dict[str, dict[str, float]] = field(default_factory=dict)
    _recent: dict[tuple[str, str], deque[float]] = field(default_factory=dict)

    def take(self, source: str, measured_ms: Mapping[str, float]) -> bool:
        """Take a report of one source; return whether a round trip in use has changed."""
        changed = False
        for to, ms in measured_ms.items():
            recent = self._recent.setdefault((source, to), deque(maxlen=ROUND_TRIPS_KEPT))
            recent.append(ms)
            middle = sorted(recent)[len(recent) // 2]
            now_ms = self.used.get(source, {}).get(to, self.given(source, to))
            sure = len(recent) > ROUND_TRIPS_KEPT // 2
            if sure and abs(middle - now_ms) > max(ROUND_TRIP_OFF * now_ms, ROUND_TRIP_OFF_MS):
                # Never changed in place: decisions that are under way hold the old ones.
                self.used = {**self.used, source: {**self.used.get(source, {}), to: middle}}
                changed = True
        return changed


@dataclass(frozen=True)
class BurstPolicy:
    """When jobs are delayed, so that those of one moment do not all try at once.

    A burst begins when demand is far above what is usual and more than the region has room for, or when far more
    attempts are refused than usual. It ends when neither has been so for a while, by lower limits. What is usual
    is smoothed, so that lasting overload, which a delay does not help, is no burst.

    Attributes:
        begins_at, ends_at: demand over its usual value.
        surprise: standard deviations by which demand or retries must be above their usual value: in a small
            region four jobs instead of two are no burst. Half of it ends one.
        attempts: a job, at least, for refusals to matter. A region of four GPUs has 1.3 at 50 % load.
        retries_together: retries come together: a job that is refused once is refused again soon after. The variance
            of their number is at most so many times that of jobs.
        calm_s: for so long a burst must be over before the delay is lowered.
    """

    begins_at: float = 2.0
    ends_at: float = 1.3
    surprise: float = 4.0
    attempts: float = 1.5
    retries_together: float = 8.0
    calm_s: float = 20.0


@dataclass(frozen=True)
class Burst:
    """Whether a region has one.

    Attributes:
        since: monotonic seconds at which it began; None: there is none.
        loud_at: when it was last seen to go on.
        why: what began it.
    """

    since: float | None = None
    loud_at: float = 0.0
    why: str = ""


NO_BURST = Burst()


@dataclass(frozen=True)
class Sign:
    """What a round says of it. Rates are per second.

    Attributes:
        demand_rps: in this round.
        usual_rps: smoothed, before this round.
        room_rps: what the region can take before it is too full.
        retries_rps: attempts after the first.
        usual_retries_rps: smoothed, before this round.
        seconds: that the round covers.
    """

    demand_rps: float
    usual_rps: float
    room_rps: float
    retries_rps: float
    usual_retries_rps: float
    seconds: float

    @property
    def attempts(self) -> float:
        """Attempts a job."""
        return 1.0 + self.retries_rps / self.demand_rps if self.demand_rps > 0 else 1.0

    def more_jobs(self, times: float, deviations: float) -> bool:
        """Whether demand is above so many times its usual value, above the room, and not by chance."""
        above = self.demand_rps > max(times * self.usual_rps, self.room_rps)
        return above and self._surprises(self.demand_rps, self.usual_rps, 1.0, deviations)

    def more_retries(self, policy: BurstPolicy, deviations: float) -> bool:
        """Whether many attempts are refused, and more than usual, and not by chance."""
        if self.attempts <= policy.attempts:
            return False
        return self._surprises(self.retries_rps, self.usual_retries_rps, policy.retries_together, deviations)

    def _surprises(self, rps: float, usual_rps: float, together: float, deviations: float) -> bool:
        count, usual = rps * self.seconds, usual_rps * self.seconds
        return count - usual > deviations * sqrt(together * max(usual, together))  # one cluster is always by chance


def next_burst(burst: Burst, sign: Sign, now: float, policy: BurstPolicy) -> Burst:
    """The burst after a round.

    Args:
        burst: before it.
        sign: of this round.
        now: monotonic seconds.
        policy: its limits.
    """
    if burst.since is None:
        why = ""
        if sign.more_jobs(policy.begins_at, policy.surprise):
            why = f"demand of {sign.demand_rps:.3g} rps, where {sign.usual_rps:.3g} are usual"
        elif sign.more_retries(policy, policy.surprise):
            why = f"{sign.attempts:.2f} attempts a job, {sign.retries_rps:.3g} retries per second where "
            why += f"{sign.usual_retries_rps:.3g} are usual"
        return Burst(now, now, why) if why else burst
    if sign.more_jobs(policy.ends_at, 0.0) or sign.more_retries(policy, policy.surprise / 2):
        return replace(burst, loud_at=now)
    return NO_BURST if now - burst.loud_at >= policy.calm_s else burst


@dataclass(frozen=True)
class RegionState:
    """One region.

    Attributes:
        demand: jobs per second of its users, smoothed; None: never measured.
        retries: attempts after the first per second, smoothed; None: never measured.
        capacity: jobs per second that it can do; None: never measured.
        burst: of its users.
        seen: the last time that anything was known of it.
    """

    demand: Estimate | None = None
    retries: Estimate | None = None
    capacity: Estimate | None = None
    burst: Burst = NO_BURST
    seen: RegionSeen = UNSEEN


@dataclass(frozen=True)
class ControlState:
    """All that a decision rests on, besides the observation.

    Attributes:
        rows: shares as they are published.
        regions: by name.
        moving: sources whose row is on its way: hysteresis is for those that rest.
        home_since: {source: monotonic seconds since when all plans have left its traffic at home}.
        started_at: monotonic seconds of the first round; None: before it.
        warm: whether all regions that are heard of were watched for long enough, once.
    """

    rows: Shares
    regions: Mapping[str, RegionState]
    moving: frozenset[str] = frozenset()
    home_since: Mapping[str, float] = field(default_factory=dict)
    started_at: float | None = None
    warm: bool = False


@dataclass(frozen=True)
class Orders:
    """What a decision takes as given.

    Attributes:
        frozen: why an operator wants the table to stay as it is; empty: none does.
        drained: regions that are to get no jobs.
        latency_ms: {source: {destination: round trip}}, measured; pairs that are left out are the fleet file's.
    """

    frozen: str = ""
    drained: frozenset[str] = frozenset()
    latency_ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


NO_ORDERS = Orders()


@dataclass(frozen=True)
class Change:
    """One share that changes."""

    source: str
    to: str
    before: float
    after: float


@dataclass(frozen=True)
class HoldReason:
    """Why a row does not go to its target.

    Attributes:
        kind: `stale`: nothing is heard of its region; `edge_gone`: it has no edge now; `warming_up`: it was not
            watched for long; `hysteresis`: the change is too small.
        text: in words and numbers.
    """

    kind: Literal["stale", "edge_gone", "warming_up", "hysteresis"]
    text: str


@dataclass(frozen=True)
class Decision:
    """What one round decides.

    Attributes:
        rows: shares from now on.
        changes: what is different in them; empty: nothing to publish.
        targets: shares that are aimed at; empty when nothing was planned.
        moves: of the plan, with their reasons.
        unserved_rps: of the plan.
        held: by source; rows that are not in it went towards their target, or are there.
        step: part of the way that was gone, 0 to 1; below 1 the largest step held the rest back.
        frozen: why the whole table stays as it is; empty: it does not.
        by_operator: whether it is frozen by an operator, and not for want of metrics.
        warming: regions that a loop which has just started has not watched for long enough.
        stale: regions of which nothing was heard for too long.
        delays: {region: share of the jobs that wait before their first attempt}.
    """

    rows: Shares
    changes: tuple[Change, ...] = ()
    targets: Shares = field(default_factory=dict)
    moves: tuple[Move, ...] = ()
    unserved_rps: Mapping[str, float] = field(default_factory=dict)
    held: Mapping[str, HoldReason] = field(default_factory=dict)
    step: float = 1.0
    frozen: str = ""
    by_operator: bool = False
    warming: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    delays: Mapping[str, float] = field(default_factory=dict)
