"""Retries: what may be tried again, and what that costs at most, in time and attempts."""

from __future__ import annotations

from collections.abc import Mapping

from .fleet import Fleet, RetryPolicy

RETRIABLE_CONDITIONS = ("connect-failure", "refused-stream", "reset-before-request")
"""In Envoy's words: nobody has begun the request. Not `5xx` or `reset`, which may have half a job done twice."""
RETRIABLE_STATUSES = (429, 503)
"""Busy, or nobody there. An answer that was lost is 502 at our proxies, for Envoy's own 503 would be tried again."""


def longest_backoff_s(policy: RetryPolicy) -> tuple[float, ...]:
    """Return the upper end of each wait of a job that is refused at each attempt: min(base * 2^(k-1), max), in s."""
    base, most = policy.base_interval_s, policy.max_interval_s
    return tuple(min(base * 2.0**k, most) for k in range(policy.attempts - 1))


def job_timeout_s(fleet: Fleet, policy: RetryPolicy | None = None) -> float:
    """Return the time that an edge gives a job: all backoff, the longest line, and one computation."""
    longest_s = 2 * max(fleet.queue.bounds_s(fleet.service_time_s))
    return sum(longest_backoff_s(policy or fleet.retry)) + longest_s + fleet.jobs.deadline_s


def attempt_groups(fleet: Fleet, source: str, row: Mapping[str, float]) -> list[dict[str, float]]:
    """Return where the attempts of a job go: {region: share of the group}, by the table, then where there may be room.

    The first group is the row of the table, and has the first attempt. The regions that are not in it follow ring by
    ring, in proportion to their GPUs: each further attempt goes to the next of these groups of which a region is
    alive, and after the last one to the first again. Who is refused has met a full line, and to stay there would be
    to wait twice. Regions beyond the rings that overflow may use, and those that `never` forbids, are in none.

    Args:
        fleet: whose regions they are.
        source: region whose users' jobs they are.
        row: of the table.
    """
    groups = [{name: share for name, share in row.items() if share > 0}]
    for ring in fleet.rings(source)[: fleet.farthest_ring + 1]:
        gpus = {name: fleet.regions[name].gpus for name in ring if name not in groups[0]}
        groups.append({name: count / sum(gpus.values()) for name, count in gpus.items() if count})
    return groups
