"""An interval for a share that holds at any time, so that one may look after each job and stop when one knows.

Beta-binomial mixture: Robbins, "Statistical methods related to the law of the iterated logarithm" (1970); Howard,
Ramdas, McAuliffe, Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences" (2021). With S of n jobs
that have a property, and a Beta(a, b) mixture over its share,

    M_n(p) = B(a + S, b + n - S) / B(a, b) / (p^S (1 - p)^(n - S))

is a martingale of mean 1 if the share is p. By Ville's inequality it ever gets to 1 / error with a probability of at
most `error`: with that probability the interval of all p with M_n(p) < 1 / error misses the share at some n.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, lgamma, log, log1p

PRIOR = (0.5, 20.0)
"""a and b of the mixture. Any are valid; these give narrow intervals for shares of some percent and below."""

_HALVINGS = 40


def interval(events: int, trials: int, error: float) -> tuple[float, float]:
    """Return the least and the largest share that the jobs so far allow.

    Args:
        events: jobs that had the property.
        trials: all jobs.
        error: probability that the share is ever outside.
    """
    if trials == 0:
        return 0.0, 1.0
    limit, middle = log(1 / error), events / trials

    def excluded(share: float) -> bool:
        return log_martingale(events, trials, share) >= limit

    low = 0.0 if not excluded(0.0) else _edge(excluded, 0.0, middle)
    high = 1.0 if not excluded(1.0) else _edge(excluded, 1.0, middle)
    return low, high


def log_martingale(events: int, trials: int, share: float) -> float:
    """Return log M_n(p), which is convex in p and least at events / trials."""
    a, b = PRIOR
    rest = trials - events
    if (events and share <= 0) or (rest and share >= 1):
        return inf
    likelihood = (events * log(share) if events else 0.0) + (rest * log1p(-share) if rest else 0.0)
    return _log_beta(a + events, b + rest) - _log_beta(a, b) - likelihood


def _edge(excluded: Callable[[float], bool], outside: float, inside: float) -> float:
    """Return the border between what is excluded and what is not, on its excluded side."""
    for _ in range(_HALVINGS):
        middle = (outside + inside) / 2
        if excluded(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
