"""Formulas of teletraffic, and one queue by simulation: loss and delay of servers that serve one request each."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np


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


def erlang_c(servers: int, offered: float) -> float:
    """Share of the requests that wait where a queue takes all (M/M/c): c B / (c - a (1 - B)); 1 at a >= c.

    Args:
        servers: c, at least 1.
        offered: a, as of `erlang_b`.
    """
    if offered >= servers:
        return 1.0
    blocked = erlang_b(servers, offered)
    return servers * blocked / (servers - offered * (1 - blocked))


def mean_wait_mmc(servers: int, offered: float, service_s: float) -> float:
    """Mean wait in s where a queue takes all and service times are exponential: C S / (c - a)."""
    return math.inf if offered >= servers else erlang_c(servers, offered) * service_s / (servers - offered)


def mean_wait_mdc(servers: int, offered: float, service_s: float) -> float:
    """Mean wait in s where a queue takes all and every service takes `service_s` (M/D/c).

    Who is in service now is gone one service time later, and who waits now or comes meanwhile is not. So the
    number in the system at steps of a service time is a Markov chain, N' = max(N - c, 0) + Poisson(a), whose
    stationary distribution gives the mean queue, and by Little's law the mean wait.

    Source: Crommelin, "Delay probability formulae when the holding times are constant", 1932.
    """
    if offered >= servers:
        return math.inf
    # Beyond this length of the queue the distribution's tail, which falls as exp(-2 (1 - a/c) n), is nothing.
    size = servers + int(40 / (1 - offered / servers)) + 20
    arrivals = np.array([_poisson(k, offered) for k in range(size)])
    chain = np.zeros((size, size))
    for n in range(size):
        left = max(n - servers, 0)
        chain[n, left:] = arrivals[: size - left]
        chain[n, -1] += max(0.0, 1 - chain[n].sum())
    # Stationary: p P = p, sum p = 1.
    equations = np.vstack([chain.T - np.eye(size), np.ones(size)])
    result = np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)[0]
    queue = float(np.maximum(np.arange(size) - servers, 0) @ result)
    return queue * service_s / offered if offered > 0 else 0.0


def _poisson(count: int, mean: float) -> float:
    return math.exp(count * math.log(mean) - mean - math.lgamma(count + 1)) if mean > 0 else float(count == 0)


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
