"""What Prometheus sees of the loop itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from .status import Status

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_OF_REGION = {
    "demand_rps": "Jobs per second that users of a region send, smoothed",
    "assigned_rps": "Jobs per second that the table sends to a region",
    "capacity_rps": "Jobs per second that a region can compute",
    "planned_load": "What the table sends to a region, as a share of its capacity",
    "load": "Share of a region's ready GPU servers that computes",
    "waiting": "Jobs in the queues of a region's dispatchers",
    "gpus": "GPU servers of a region by the fleet file",
    "gpus_ready": "GPU servers that a region's dispatchers find ready, busy or not",
    "gpus_missing": "GPU servers of the fleet file that are not ready",
    "cost_s": "Seconds of a GPU server that one request takes",
    "load_per_rps": "Load that one more request per second costs a region",
    "attempts": "Attempts a job of a region's users",
    "delay_share": "Share of jobs that wait before their first attempt",
    "stale": "1 while nothing is heard of a region's demand",
    "burst": "1 while a burst is seen",
    "drained": "1 while an operator wants a region to get no jobs",
}
"""Of a region's status, those that are series, by name; `stale` is `region_stale`."""

Values = Mapping[tuple[str, ...], float | None]
"""By values of the labels."""


class Exported(Collector):
    """The series of one loop. Made once."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._status: Status | None = None
        self._age_s = float("inf")
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
        self.registry.register(self)

    def update(self, status: Status, took_s: float, problems: Iterable[str]) -> None:
        """After a round.

        Args:
            status: after it.
            took_s: the round's time.
            problems: kind of each that was seen in it.
        """
        failed_before, tables_before = (
            (0, 0) if self._status is None else (self._status.failed_rounds, self._status.tables)
        )
        self._status = status
        failed = status.failed_rounds > failed_before
        self._rounds.labels("failed" if failed else "ok").inc()
        self._tables.inc(status.tables - tables_before)
        self._seconds.observe(took_s)
        if not failed:  # otherwise they are those of the round before
            for kind in problems:
                self._problems.labels(kind).inc()

    def page(self, age_s: float | None) -> bytes:
        """The text that Prometheus scrapes.

        Args:
            age_s: seconds since the last round that succeeded; None: there was none.
        """
        self._age_s = float("inf") if age_s is None else age_s
        return generate_latest(self.registry)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give the gauges, as prometheus_client asks for them. What is not known is not there."""
        yield _gauge("last_good_round_age_seconds", "Time since the last round that succeeded", {(): self._age_s})
        if (now := self._status) is None:
            return
        yield _gauge("frozen", "1 while the table is frozen", {(): bool(now.frozen)})
        yield _gauge("not_ready", "1 while the table does not follow the traffic", {(): bool(now.not_ready)})
        yield _gauge("table_version", "Version of the published table", {(): now.version})
        for name, text in _OF_REGION.items():
            found: Values = {(region,): getattr(one, name) for region, one in now.regions.items()}
            if name == "burst":
                found = {labels: bool(why) for labels, why in found.items()}
            yield _gauge("region_stale" if name == "stale" else name, text, found, "region")
        text = "Jobs per second above capacity that find no other region"
        yield _gauge("unserved_rps", text, {(one,): rps for one, rps in now.unserved_rps.items()}, "region")
        for name, text, rows in (
            ("share", "Share of a source's requests that a destination gets", now.shares),
            ("served_rps", "Jobs per second that were answered with a result", now.rps),
        ):
            cells: Values = {(source, to): value for source, row in rows.items() for to, value in row.items()}
            yield _gauge(name, text, cells, "source", "destination")


def _gauge(name: str, text: str, values: Values, *labels: str) -> GaugeMetricFamily:
    found = GaugeMetricFamily(f"stillmotion_routing_{name}", text, labels=labels)
    for names, value in values.items():
        if value is not None:
            found.add_metric(names, float(value))
    return found
