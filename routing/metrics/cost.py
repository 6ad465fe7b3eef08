"""What one request per second costs in load: a regression of load on requests, region by region.

Busy seconds y on requests x, through the origin, since an idle server has no load. Requests come at random, so
that the variance of y grows with x; least squares with weights 1/x then has the solution

    cost = sum(y) / sum(x)

which, unlike the unweighted one, does not come out low because x is noisy too (in windows of four requests by a
fifth). The sums forget with a time constant. The prior is as much data as n requests of the service time in
`fleet.yaml`:

    fleet:   c_f = (n * service_time_s + sum of all y) / (n + sum of all x)
    region:  c_r = (n * c_f            + sum of its y) / (n + sum of its x)

so that an idle region has the cost that was measured in the others. A region's load rises by c_r / (ready GPUs)
for each request per second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import exp

MOST_TIMES = 10.0
"""A cost is kept within service_time_s / 10 and 10 service_time_s: beyond, something is counted wrongly."""


@dataclass
class _Sums:
    busy_s: float = 0.0
    requests: float = 0.0


@dataclass
class Costs:
    """Cost of a request by region and metric, in seconds of a whole GPU server.

    Attributes:
        regions: of the fleet.
        metrics: names of the load metrics.
        service_time_s: the prior.
        prior_requests: what the prior weighs, n of the formula. Service times that vary by a quarter of their
            mean are known to 6 % after 20 requests, whether the prior was right or not worth having.
        memory_s: time constant of forgetting.
    """

    regions: Iterable[str]
    metrics: Iterable[str]
    service_time_s: float
    prior_requests: float = 20.0
    memory_s: float = 300.0
    _sums: dict[tuple[str, str], _Sums] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sums = {(region, metric): _Sums() for region in self.regions for metric in self.metrics}

    def forget(self, seconds: float) -> None:
        """Let time pass."""
        kept = exp(-max(0.0, seconds) / self.memory_s)
        for sums in self._sums.values():
            sums.busy_s *= kept
            sums.requests *= kept

    def add(self, region: str, busy_s: Mapping[str, float], requests: float) -> None:
        """What one server did.

        Args:
            region: where it is.
            busy_s: by metric.
            requests: that it computed meanwhile.
        """
        for metric, seconds in busy_s.items():
            sums = self._sums[region, metric]
            sums.busy_s += seconds
            sums.requests += requests

    def cost_s(self, region: str, metric: str) -> float:
        """Seconds of a whole GPU server that a request takes there, by this metric."""
        everywhere = [sums for (_, name), sums in self._sums.items() if name == metric]
        fleet = self._with_prior(
            self.service_time_s, sum(s.busy_s for s in everywhere), sum(s.requests for s in everywhere)
        )
        own = self._sums[region, metric]
        cost = self._with_prior(fleet, own.busy_s, own.requests)
        return min(max(cost, self.service_time_s / MOST_TIMES), self.service_time_s * MOST_TIMES)

    def worst_s(self, region: str) -> float:
        """By the metric that is scarcest."""
        return max(self.cost_s(region, metric) for name, metric in self._sums if name == region)

    def _with_prior(self, prior_s: float, busy_s: float, requests: float) -> float:
        return (self.prior_requests * prior_s + busy_s) / (self.prior_requests + requests)
