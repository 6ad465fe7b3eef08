"""What Prometheus sees of the job service."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .records import State
from .settings import PRIORITIES

_WAITS = (0.1, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)
_TIMES = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 45.0, 90.0, 180.0, 600.0)


class Metrics:
    """The series of one process; jobs are counted in the database, which all processes share."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.jobs = Gauge(
            "stillmotion_jobs", "Jobs there are, by state and class", ["state", "priority"], registry=registry
        )
        self.in_flight = Gauge("stillmotion_jobs_in_flight", "Jobs that this process has sent", registry=registry)
        self.webhooks_left = Gauge("stillmotion_jobs_webhooks_left", "Webhooks that wait", registry=registry)
        self.submitted = Counter("stillmotion_jobs_submitted", "Jobs that were taken", ["priority"], registry=registry)
        self.finished = Counter("stillmotion_jobs_finished", "Jobs that ended", ["outcome"], registry=registry)
        self.refused = Counter(
            "stillmotion_jobs_refused",
            "Times the upstream had no room, or was not there",
            ["reason"],
            registry=registry,
        )
        self.lost = Counter("stillmotion_jobs_lost", "Computations that were lost and begun anew", registry=registry)
        self.webhooks = Counter("stillmotion_jobs_webhooks", "Webhooks sent", ["outcome"], registry=registry)
        self.waited = Histogram(
            "stillmotion_jobs_waited_seconds", "From submission to the start", buckets=_WAITS, registry=registry
        )
        self.computed = Histogram(
            "stillmotion_jobs_computed_seconds", "From the start to the video", buckets=_TIMES, registry=registry
        )
        for outcome in ("completed", "failed", "deleted"):
            self.finished.labels(outcome=outcome)
        for reason in ("busy", "unavailable"):
            self.refused.labels(reason=reason)
        for outcome in ("delivered", "retried", "given_up"):
            self.webhooks.labels(outcome=outcome)
        for priority in PRIORITIES:
            self.submitted.labels(priority=priority)

    def page(self, totals: dict[tuple[str, int], int], in_flight: int, webhooks_left: int) -> bytes:
        """Return the text that Prometheus reads."""
        for state in State:
            for number, priority in enumerate(PRIORITIES):
                self.jobs.labels(state=state, priority=priority).set(totals.get((state, number), 0))
        self.in_flight.set(in_flight)
        self.webhooks_left.set(webhooks_left)
        return generate_latest(self.registry)
