"""What a round of metrics gives: an `Observation`, which is all that the control loop's decisions rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .oddities import Oddity


@dataclass(frozen=True)
class RegionSeen:
    """One region in one round. None: not known this time.

    Attributes:
        demand_rps: jobs that its users sent, the mean over the last `over_s`; never attempts.
        over_s: time that `demand_rps` and `retries_rps` are means of.
        retries_rps: attempts after the first, of its users' jobs.
        capacity_rps: jobs that its ready GPUs can compute.
        gpus_ready: GPU servers that can take a job now or when they are done with one.
        gpus_missing: GPU servers that are not heard of.
        load: share of its ready GPU servers' limit that is in use, by metric.
        cost_s: time of a whole GPU server that one request takes, by the metric that is scarcest.
        edge_gone: nobody listens where its edges were: it has no users now. Its demand is 0.
        ready_servers: addresses of the GPU servers that are not known to be down.
    """

    demand_rps: float | None = None
    over_s: float = 0.0
    retries_rps: float | None = None
    capacity_rps: float | None = None
    gpus_ready: int | None = None
    gpus_missing: int = 0
    load: Mapping[str, float] = field(default_factory=dict)
    cost_s: float | None = None
    edge_gone: bool = False
    ready_servers: tuple[str, ...] = ()

    @property
    def load_per_rps(self) -> float | None:
        """Share of the region's load that one more request per second costs."""
        if not self.gpus_ready or self.cost_s is None:
            return None
        return self.cost_s / self.gpus_ready


UNSEEN = RegionSeen()


@dataclass(frozen=True)
class Observation:
    """All regions in one round.

    Attributes:
        regions: by name; one that is left out was not heard of.
        rps: {source: {destination: jobs per second that were answered with a result}}.
        oddities: what was missing, late or absurd.
    """

    regions: Mapping[str, RegionSeen]
    rps: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    oddities: tuple[Oddity, ...] = ()
