"""The numbers of the control loop: those of the fleet, and those that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

from ..fleet import DelayPolicy, Fleet


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
        retries_together: retries come in heaps: a job that is refused once is refused again soon after. The
            variance of their number is at most so many times that of jobs.
        calm_s: for so long a burst must be over before the delay is lowered.
    """

    begins_at: float = 2.0
    ends_at: float = 1.3
    surprise: float = 4.0
    attempts: float = 1.5
    retries_together: float = 8.0
    calm_s: float = 20.0


@dataclass(frozen=True)
class ControlPolicy:
    """How the loop turns what it sees into tables.

    Attributes:
        smoothing_s: time constant of demand, and of capacity that rises.
        hysteresis: a row whose largest change is smaller stays as it is.
        max_step: no share changes by more in one update.
        stale_after_s: a region that was not heard of for longer is frozen.
        warm_up_s: time for which a loop that has just started only looks.
        delay: of jobs, in a burst and without.
        burst: when that is.
    """

    smoothing_s: float
    hysteresis: float
    max_step: float
    stale_after_s: float
    warm_up_s: float
    delay: DelayPolicy
    burst: BurstPolicy = BurstPolicy()

    @classmethod
    def of(cls, fleet: Fleet) -> ControlPolicy:
        """The policy of a fleet file.

        The warm-up is half the smoothing: by then the estimate rests on a window as long as that.
        """
        return cls(
            smoothing_s=fleet.smoothing_s,
            hysteresis=fleet.hysteresis,
            max_step=fleet.max_step,
            stale_after_s=fleet.stale_after_s,
            warm_up_s=fleet.smoothing_s / 2,
            delay=fleet.retry.delay,
            # As long as smoothing takes to see a lasting rise as the new usual.
            burst=BurstPolicy(calm_s=fleet.smoothing_s, retries_together=max(1, fleet.retry.attempts - 1)),
        )
