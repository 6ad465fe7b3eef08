"""The optimum to compare with: a linear program, solved by HiGHS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import RoutingError
from .problem import Floats, Problem


def least_cost(problem: Problem, overflow: Floats, *, by_home_load: bool = False) -> Floats:
    """Return the flow of least cost for a given overflow of each source.

        minimise    sum over s, d of  cost_ms[s, d] * x[s, d]
        such that   sum over d of x[s, d] = overflow[s]
                    sum over s of x[s, d] <= room[d]
                    sum over d beyond ring r_k of s of x[s, d] <= what s has above the threshold that unlocks more

    Args:
        problem: rings, rooms and thresholds.
        overflow: (source,) in requests per second, such that there is a flow.
        by_home_load: a looser reach: all overflow of a source may use each ring that its load at home unlocks.

    Returns:
        (source, destination), requests per second.

    Raises:
        RoutingError: SciPy is not installed, or there is no such flow.
    """
    try:
        from scipy import sparse
        from scipy.optimize import linprog
    except ImportError as error:
        raise RoutingError("the solver lp needs SciPy: pip install 'stillmotion[laboratory]'") from error
    flow = np.zeros_like(problem.latency_ms)
    reach = np.zeros(len(problem.names), dtype=np.int64)
    for (_, ring), excess in zip(problem.thresholds, problem.excess, strict=True):
        reach[excess > problem.tolerance] = ring
    allowed = (problem.ring > 0) & (problem.ring <= reach[:, None]) & (problem.room > 0) & (overflow > 0)[:, None]
    source, to = np.nonzero(allowed)
    if not source.size:
        return flow
    # In units of the mean overflow, since the solver's tolerances are absolute.
    unit = overflow.sum() / np.count_nonzero(overflow)
    variable, ones = np.arange(len(source)), np.ones(len(source))
    senders, row = np.unique(source, return_inverse=True)
    equal = sparse.csr_array((ones, (row, variable)), shape=(len(senders), len(source)))
    rows = [_Rows(to, ones.astype(bool), problem.room)]
    if not by_home_load:
        beyond = [problem.ring[source, to] > ring for _, ring in problem.thresholds[:-1]]
        rows += [_Rows(source, far, above) for far, above in zip(beyond, problem.excess[1:], strict=True)]
    limits = [
        sparse.csr_array((ones[one.chosen], (one.region[one.chosen], variable[one.chosen])), (len(flow), len(source)))
        for one in rows
    ]
    # The overflow has the rounding errors of many chunks: a hair of slack keeps the program feasible.
    slack = 1e-9
    found = linprog(
        problem.cost_ms[source, to],
        A_ub=sparse.vstack(limits),
        b_ub=np.concatenate([one.limit for one in rows]) / unit + slack,
        A_eq=equal,
        b_eq=overflow[senders] / unit,
        method="highs",
    )
    if not found.success:
        raise RoutingError(f"the linear program has no solution: {found.message}")
    flow[source, to] = np.maximum(0.0, found.x) * unit
    return flow


@dataclass(frozen=True)
class _Rows:
    """One inequality a region: the sum of the chosen variables that are of it is within its limit.

    Attributes:
        region: (variable,)
        chosen: (variable,)
        limit: (region,)
    """

    region: np.ndarray
    chosen: np.ndarray
    limit: Floats
