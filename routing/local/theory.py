"""What no policy can beat: Erlang's loss formula without waiting, and one queue for all GPUs with it."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass


def erlang_b(servers: int, offered: float) -> float:
    """Share of requests that find all servers busy, when none waits (Erlang 1917).

    B(0) = 1, B(c) = a B(c-1) / (c + a B(c-1)), for any distribution of service times.

    Args:
        servers: c.
        offered: a, arrivals per second times mean service time.
    """
    blocked = 1.0
    for c in range(1, servers + 1):
        blocked = offered * blocked / (c + offered * blocked)
    return blocked


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
