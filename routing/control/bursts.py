"""Bursts: when one begins, when it is over, and the numbers that decide it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt


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
