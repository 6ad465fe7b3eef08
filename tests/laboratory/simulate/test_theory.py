"""The simulator against what is known of simple systems."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import brentq

from laboratory.queueing import erlang_b
from laboratory.simulate.run import simulate
from laboratory.simulate.state import mean, quantile

# Student's t for a two-sided 99 % interval with 37 degrees of freedom: 38 batches.
T_99 = 2.715
LOADS = {
    1: (0.3, 0.6, 0.9, 1.5),
    4: (0.3, 0.6, 0.9, 1.5),
    12: (0.5, 0.7, 0.9, 1.2),
    60: (0.75, 0.85, 0.95, 1.2),
    300: (0.88, 0.92, 1.0, 1.2),
}
QUICK = {(1, 0.6), (4, 1.5), (12, 0.7), (12, 1.2), (60, 0.85), (300, 0.92)}


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


def settings(given, quick):
    """All of them, of which those that are not quick are for `make test-all`."""
    return [one if one in quick else pytest.param(*one, marks=pytest.mark.slow) for one in given]


SETTINGS = settings([(gpus, load) for gpus, loads in LOADS.items() for load in loads], QUICK)
QUEUES = settings([(1, 0.5), (1, 0.85), (3, 0.8), (12, 0.7), (12, 0.9), (60, 0.95)], {(1, 0.85), (12, 0.7)})


@pytest.mark.parametrize(("gpus", "load"), SETTINGS)
def test_refusals_without_retries_are_those_of_erlang_b(make, batches_of, gpus, load):
    # Whatever the distribution of service times: they take turns.
    kind = ("fixed", "exponential", "lognormal")[(gpus + int(20 * load)) % 3]
    seconds = 600_000 / (gpus * load)
    experiment = make(
        [gpus],
        kind=kind,
        retry={"attempts": 1},
        duration_s=seconds,
        series_s=seconds / 40,
        arrivals={"load": load},
    )
    share, half = batches_of(experiment).interval(T_99)
    expected = erlang_b(gpus, gpus * load)
    assert half < 0.3 * expected  # an interval that says something
    assert abs(share - expected) <= half


@pytest.mark.parametrize(("kind", "expected"), [("exponential", mean_wait_mmc), ("fixed", mean_wait_mdc)])
@pytest.mark.parametrize(("gpus", "load"), QUEUES)
def test_waits_in_a_queue_are_those_of_mmc_and_mdc(make, kind, expected, gpus, load):
    seconds = 1_000_000 / (gpus * load)
    experiment = make(
        [gpus],
        kind=kind,
        retry={"attempts": 1},
        duration_s=seconds,
        series_s=seconds / 40,
        arrivals={"load": load},
        proxies={"queue": 1_000_000},
    )
    outcome = simulate(experiment)
    assert outcome.last.failed.sum() == 0
    series = outcome.series[2:]
    means = [mean((b.waits - a.waits).sum(axis=0)) for a, b in pairwise(series)]
    half = T_99 * np.std(means, ddof=1) / np.sqrt(len(means))
    wanted = expected(gpus, gpus * load, 1.0)
    assert half < 0.2 * wanted
    assert abs(np.mean(means) - wanted) <= half + 0.002 * wanted  # bins are 0.4 % wide


def busy_share(load, attempts):
    """Share of busy GPU servers when each attempt finds one at random: u = load * (1 - u^attempts)."""
    return brentq(lambda u: load * (1 - u**attempts) - u, 0.0, 1.0)


@pytest.mark.parametrize(("load", "attempts"), [(0.6, 1), (0.9, 1), (0.6, 3), (0.8, 5), (0.9, 9)])
def test_blind_attempts_fail_as_often_as_gpus_are_busy(make, load, attempts):
    # A large fleet and waits so long that attempts are as good as independent.
    outcome = simulate(
        make(
            [1000],
            retry={"attempts": attempts, "base_interval_s": 5.0, "max_interval_s": 5.0},
            duration_s=400.0,
            warm_up_s=60.0,
            arrivals={"load": load},
            proxies={"dispatchers": 1000, "queue": 0},  # each has one GPU, and refuses what is more
        )
    )
    start, end = outcome.warm, outcome.last
    jobs = (end.attempts_taken - start.attempts_taken).sum()
    u = busy_share(load, attempts)
    assert (end.failed - start.failed).sum() / jobs == pytest.approx(u**attempts, abs=0.004)
    tried = (end.tried - start.tried).sum() / jobs
    assert tried == pytest.approx((1 - u**attempts) / (1 - u), rel=0.02)


def test_backoff_waits_no_longer_than_envoys_formula(make):
    retry = {"attempts": 4, "base_interval_s": 0.5, "max_interval_s": 1.5}
    outcome = simulate(make([4], retry=retry, duration_s=2000.0, arrivals={"load": 1.5}))
    # Each wait is uniform(0, min(0.5 * 2^(k-1), 1.5)): 0.5 + 1.0 + 1.5 at most.
    waits = outcome.last.waits.sum(axis=0)
    assert 2.5 < quantile(waits, 1.0) <= 3.0 * 1.004
