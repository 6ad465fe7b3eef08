"""Formulas of teletraffic, and one queue by simulation: loss and delay of servers that serve one request each."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt


def erlang_b(servers: int, offered: float) -> float:
    """Share of the requests that find all servers busy and are refused (M/G/c/c).

    By the recursion B(0) = 1, B(k) = a B(k-1) / (k + a B(k-1)), which is stable for any size: all its terms are
    positive and nothing cancels. Whatever the distribution of service times, only their mean counts.

    Args:
        servers: c, at least 0.
        offered: a = requests per second x mean service time in s, at least 0.

    Source: A. K. Erlang, "Solution of some problems in the theory of probabilities", 1917.
    """
    if offered <= 0:
        return 0.0 if servers > 0 else 1.0
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    return blocked


def gpus_for(offered: float, blocking: float) -> int:
    """The fewest servers that refuse at most this share of the requests.

    Args:
        offered: a, as of `erlang_b`.
        blocking: above 0.
    """
    servers, blocked = 0, 1.0
    while blocked > blocking:
        servers += 1
        blocked = offered * blocked / (servers + offered * blocked)
    return servers


@dataclass(frozen=True)
class Queue:
    """What one first-come-first-served queue in front of all servers does.

    Attributes:
        failed_share: of the requests, that gave up.
        p50_s, p95_s, p99_s: of wait and service of the others.
    """

    failed_share: float
    p50_s: float
    p95_s: float
    p99_s: float


def ideal_queue(
    servers: int,
    arrivals: Callable[[random.Random], list[float]],
    draw: Callable[[random.Random], float],
    patience_s: float,
    generator: random.Random,
) -> Queue:
    """Simulate it: a request that would wait longer than its patience fails, as it would with the best of timing.

    With Poisson arrivals and a constant service time it is M/D/c, with exponential ones M/M/c, both with constant
    patience.

    Args:
        servers: c.
        arrivals: their times in seconds, in order.
        draw: a service time.
        patience_s: longest wait.
        generator: of random numbers.
    """
    free_at = [0.0] * servers
    failed, took = 0, []
    times = arrivals(generator)
    for at in times:
        begins = max(at, free_at[0])
        if begins - at > patience_s:
            failed += 1
            continue
        ends = begins + draw(generator)
        heapq.heapreplace(free_at, ends)
        took.append(ends - at)
    took.sort()

    def quantile(share: float) -> float:
        return took[min(len(took) - 1, int(share * len(took)))] if took else 0.0

    return Queue(failed / len(times) if times else 0.0, quantile(0.50), quantile(0.95), quantile(0.99))


def wilson(count: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share, 95 % by default (Wilson 1927): it is right for few and for none too."""
    if of == 0:
        return 0.0, 1.0
    share = count / of
    middle = share + z * z / (2 * of)
    half = z * sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    # At the ends rounding would leave the share itself outside.
    return min(share, max(0.0, (middle - half) / scale)), max(share, min(1.0, (middle + half) / scale))
