"""What Prometheus sees of a server, beside BentoML's own series."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import bentoml

if TYPE_CHECKING:
    from pipeline.serve.manifest import ModelInfo

    from .admission import Slot

# Seconds. All floats: BentoML's multi-process mode fails on integers.
STEP_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
COMPUTE_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0)

OUTCOMES = {
    200: "ok",
    400: "bad_input",
    408: "slow_upload",
    413: "bad_input",
    415: "bad_input",
    429: "busy",
    499: "disconnected",
    500: "failed",
    503: "unavailable",
    504: "deadline",
}
"""Outcome of a request by its status. 499 is nobody's answer: the client had gone."""


class Metrics:
    """The series of one server process. Made once, in the process that serves.

    Gauges are `mostrecent`: with `livesum` the value of a crashed process would be added for ever.
    """

    def __init__(self) -> None:
        kinds = bentoml.metrics
        self.ready = kinds.Gauge(
            "stillmotion_ready", "1 when a warm-up animation has succeeded", multiprocess_mode="mostrecent"
        )
        self.load = kinds.Gauge(
            "stillmotion_load", "Requests queued or in flight: 0 or 1", multiprocess_mode="mostrecent"
        )
        self.steps_left = kinds.Gauge(
            "stillmotion_steps_left", "Steps left of the animation in flight", multiprocess_mode="mostrecent"
        )
        self.info = kinds.Gauge(
            "stillmotion_model_info",
            "Always 1; the labels say what is served",
            labelnames=["region", "model", "family", "runtime", "precision", "steps", "passes"],
            multiprocess_mode="mostrecent",
        )
        self.load_seconds = kinds.Gauge(
            "stillmotion_model_load_seconds",
            "Time from start to ready, warm-up included",
            multiprocess_mode="mostrecent",
        )
        self.busy_seconds = kinds.Counter("stillmotion_busy_seconds_total", "Time during which the slot was taken")
        self.requests = kinds.Counter("stillmotion_requests_total", "Requests for an animation", labelnames=["outcome"])
        self.cancelled = kinds.Counter(
            "stillmotion_cancelled_total", "Computations that were stopped before their end", labelnames=["reason"]
        )
        self.fallbacks = kinds.Counter(
            "stillmotion_runtime_fallback_total",
            "Times the packaged program was not used: it did not fit the machine (load) or a request's shape (shape)",
            labelnames=["reason"],
        )
        self.marks = kinds.Counter(
            "stillmotion_marks_total", "Clips that were marked as made by AI", labelnames=["kind"]
        )
        self.step_seconds = kinds.Histogram("stillmotion_step_seconds", "Time of one step", buckets=STEP_BUCKETS)
        self.compute_seconds = kinds.Histogram(
            "stillmotion_compute_seconds",
            "Time of one animation, decoding and encoding included",
            buckets=COMPUTE_BUCKETS,
        )
        for outcome in sorted(set(OUTCOMES.values())):
            self.requests.labels(outcome=outcome)  # so that a first one shows up as an increase
        for reason in ("load", "shape"):
            self.fallbacks.labels(reason=reason)
        for kind in ("c2pa", "iptc"):
            self.marks.labels(kind=kind)
        for gauge in (self.ready, self.load, self.steps_left):
            gauge.set(0)
        self._counted_s = 0.0
        self._lock = threading.Lock()

    def describe(self, region: str, model: str, info: ModelInfo, runtime: str) -> None:
        self.info.labels(
            region=region,
            model=model,
            family=info.family,
            runtime=runtime,
            precision=info.dtype,
            steps=info.steps,
            passes=info.passes,
        ).set(1)

    def count_busy(self, slot: Slot) -> None:
        """Bring the counter up to date; called at each step and each scrape, so that its rate is smooth."""
        with self._lock:
            total = slot.busy_s()
            self.busy_seconds.inc(max(0.0, total - self._counted_s))
            self._counted_s = total
