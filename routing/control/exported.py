"""What Prometheus sees of the loop itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .status import RegionStatus, Status

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Exported:
    """The series of one loop. Made once."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        for name, text, labels in _GAUGES:
            self._gauges[name] = Gauge(f"stillmotion_routing_{name}", text, labels, registry=self.registry)
        self._rounds = Counter("stillmotion_routing_rounds", "Rounds of the loop", ["outcome"], registry=self.registry)
        self._tables = Counter("stillmotion_routing_tables", "Tables that were published", registry=self.registry)
        self._problems = Counter(
            "stillmotion_routing_scrape_problems",
            "Proxies times rounds in which a metric was missing, late or absurd",
            ["kind"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "stillmotion_routing_round_seconds", "Time of one round", buckets=_BUCKETS, registry=self.registry
        )
        for outcome in ("ok", "failed"):
            self._rounds.labels(outcome)
        self._counted_tables = 0
        self._counted_failed = 0

    def update(self, status: Status, took_s: float, problems: Iterable[str]) -> None:
        """After a round.

        Args:
            status: after it.
            took_s: the round's time.
            problems: kind of each that was seen in it.
        """
        failed = status.failed_rounds > self._counted_failed
        self._rounds.labels("failed" if failed else "ok").inc()
        self._counted_failed = status.failed_rounds
        self._tables.inc(status.tables - self._counted_tables)
        self._counted_tables = status.tables
        self._seconds.observe(took_s)
        if not failed:  # otherwise they are those of the round before
            for kind in problems:
                self._problems.labels(kind).inc()
        self._gauges["frozen"].set(bool(status.frozen))
        self._gauges["table_version"].set(status.version)
        self._gauges["not_ready"].set(bool(status.not_ready))
        for name, region in status.regions.items():
            self._region(name, region)
        self._matrix("share", status.shares)
        self._matrix("served_rps", status.rps)
        left = self._gauges["unserved_rps"]
        left.clear()
        for name, rps in status.unserved_rps.items():
            left.labels(name).set(rps)

    def page(self, age_s: float | None) -> bytes:
        """The text that Prometheus scrapes.

        Args:
            age_s: seconds since the last round that succeeded; None: there was none.
        """
        self._gauges["last_good_round_age_seconds"].set(float("inf") if age_s is None else age_s)
        return generate_latest(self.registry)

    def _region(self, name: str, region: RegionStatus) -> None:
        for key in _OF_REGION:
            value: float | None = getattr(region, key)
            # A gauge that is not known is not there, which an alert can tell from 0.
            if value is None:
                self._gauges[key].remove_by_labels({"region": name})
            else:
                self._gauges[key].labels(name).set(float(value))
        self._gauges["region_stale"].labels(name).set(region.stale)
        self._gauges["burst"].labels(name).set(bool(region.burst))
        self._gauges["drained"].labels(name).set(region.drained)

    def _matrix(self, name: str, rows: Mapping[str, Mapping[str, float]]) -> None:
        gauge = self._gauges[name]
        gauge.clear()
        for source, row in rows.items():
            for to, value in row.items():
                gauge.labels(source, to).set(value)


_OF_REGION = (
    "demand_rps",
    "assigned_rps",
    "capacity_rps",
    "planned_load",
    "load",
    "waiting",
    "gpus",
    "gpus_ready",
    "gpus_missing",
    "cost_s",
    "load_per_rps",
    "attempts",
    "delay_share",
)

_GAUGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("demand_rps", "Jobs per second that users of a region send, smoothed", ("region",)),
    ("assigned_rps", "Jobs per second that the table sends to a region", ("region",)),
    ("capacity_rps", "Jobs per second that a region can compute", ("region",)),
    ("planned_load", "What the table sends to a region, as a share of its capacity", ("region",)),
    ("load", "Share of a region's ready GPU servers that computes", ("region",)),
    ("waiting", "Jobs in the queues of a region's dispatchers", ("region",)),
    ("gpus", "GPU servers of a region by the fleet file", ("region",)),
    ("gpus_ready", "GPU servers that a region's dispatchers find ready, busy or not", ("region",)),
    ("gpus_missing", "GPU servers of the fleet file that are not ready", ("region",)),
    ("cost_s", "Seconds of a GPU server that one request takes", ("region",)),
    ("load_per_rps", "Load that one more request per second costs a region", ("region",)),
    ("attempts", "Attempts a job of a region's users", ("region",)),
    ("delay_share", "Share of jobs that wait before their first attempt", ("region",)),
    ("region_stale", "1 while nothing is heard of a region's demand", ("region",)),
    ("burst", "1 while a burst is seen", ("region",)),
    ("share", "Share of a source's requests that a destination gets", ("source", "destination")),
    ("served_rps", "Jobs per second that were answered with a result", ("source", "destination")),
    ("unserved_rps", "Jobs per second above capacity that find no other region", ("region",)),
    ("drained", "1 while an operator wants a region to get no jobs", ("region",)),
    ("frozen", "1 while the table is frozen", ()),
    ("not_ready", "1 while the table does not follow the traffic", ()),
    ("table_version", "Version of the published table", ()),
    ("last_good_round_age_seconds", "Time since the last round that succeeded", ()),
)
