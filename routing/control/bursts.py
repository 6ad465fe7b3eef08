"""Bursts: when one begins, when it is over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

from .policy import BurstPolicy


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
    """What a round says of it.

    Attributes:
        demand_rps: in this round.
        usual_rps: smoothed, before this round.
        room_rps: what the region can take before it is too full.
        retries_rps: attempts after the first.
        seconds: that the round covers.
    """

    demand_rps: float
    usual_rps: float
    room_rps: float
    retries_rps: float
    seconds: float

    @property
    def attempts(self) -> float:
        """Attempts a job."""
        return 1.0 + self.retries_rps / self.demand_rps if self.demand_rps > 0 else 1.0


def next_burst(burst: Burst, sign: Sign, now: float, policy: BurstPolicy) -> Burst:
    """The burst after a round.

    Args:
        burst: before it.
        sign: of this round.
        now: monotonic seconds.
        policy: its limits.
    """
    if burst.since is None:
        why = _begins(sign, policy)
        return Burst(now, now, why) if why else burst
    if _goes_on(sign, policy):
        return replace(burst, loud_at=now)
    return NO_BURST if now - burst.loud_at >= policy.calm_s else burst


def _begins(sign: Sign, policy: BurstPolicy) -> str:
    jobs, usual = sign.demand_rps * sign.seconds, sign.usual_rps * sign.seconds
    surprising = jobs - usual > policy.surprise * sqrt(max(usual, 1.0))
    if surprising and sign.demand_rps > max(policy.begins_at * sign.usual_rps, sign.room_rps):
        return f"demand of {sign.demand_rps:.3g} rps, where {sign.usual_rps:.3g} are usual"
    if sign.retries_rps * sign.seconds >= policy.fewest_retries and sign.attempts > policy.attempts_begin:
        return f"{sign.attempts:.2f} attempts a job"
    return ""


def _goes_on(sign: Sign, policy: BurstPolicy) -> bool:
    refused = sign.retries_rps * sign.seconds >= policy.fewest_retries and sign.attempts > policy.attempts_end
    return refused or sign.demand_rps > max(policy.ends_at * sign.usual_rps, sign.room_rps)
