"""What the loop remembers from round to round, and what it decides in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..metrics.observation import UNSEEN, RegionSeen
from ..table import Move
from .bursts import NO_BURST, Burst
from .smoothing import Estimate, Shares


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
