"""Retries: what may be tried again, and what that costs at most, in time and attempts."""

from __future__ import annotations

from dataclasses import dataclass

from .fleet import RetryPolicy

RETRIABLE_CONDITIONS = ("connect-failure", "refused-stream", "reset-before-request")
"""In Envoy's words: nobody has begun the request. Not `5xx` or `reset`, which may have half a job done twice."""
RETRIABLE_STATUSES = (429, 503)
"""Busy, or nobody there. An answer that was lost is 502 at our proxies, for Envoy's own 503 would be tried again."""


@dataclass(frozen=True)
class Waits:
    """Backoff of one job that is refused at each attempt, in seconds.

    Attributes:
        longest_s: after attempt 1, 2, ...: the upper end of each draw, min(base * 2^(k-1), max).
    """

    longest_s: tuple[float, ...]

    @classmethod
    def of(cls, policy: RetryPolicy) -> Waits:
        base, most = policy.base_interval_s, policy.max_interval_s
        return cls(tuple(min(base * 2.0**k, most) for k in range(policy.attempts - 1)))

    @property
    def total_longest_s(self) -> float:
        """Nobody waits longer in all."""
        return sum(self.longest_s)

    @property
    def total_mean_s(self) -> float:
        """Mean of the whole wait: each draw is uniform from 0."""
        return self.total_longest_s / 2


def attempts_by_table(policy: RetryPolicy) -> int:
    """How many attempts go by the planned shares, before others go to the regions that are kept for retries.

    Two thirds: most jobs that are refused find a place at home in that time, and three attempts are left for
    a region whose table does not know yet that it is hot.
    """
    return max(1, round(policy.attempts * 2 / 3))


def expected_attempts(refused: float, attempts: int) -> float:
    """Mean attempts of a job when each is refused with this probability: (1 - r^n) / (1 - r), at most n.

    Args:
        refused: share of attempts that find no free GPU, 0 to 1, as if each were drawn anew.
        attempts: of the policy.
    """
    return sum(refused**k for k in range(attempts))
