"""What a stand-in shows on `/metrics`: the series of `serving/metrics.py`, under the same names.

Tests compare the names, and read the text with Prometheus' own parser.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

COMPUTE_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0)
STEP_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
OUTCOMES = ("bad_input", "busy", "deadline", "disconnected", "failed", "ok", "slow_upload", "unavailable")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Histogram:
    """Counts of values by upper limit."""

    limits: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.limits) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        place = next((i for i, limit in enumerate(self.limits) if value <= limit), len(self.limits))
        self.counts[place] += times
        self.total += value * times


@dataclass
class Series:
    """The counters of one stand-in since it started."""

    requests: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    cancelled: dict[str, int] = field(default_factory=dict)
    compute_seconds: Histogram = field(default_factory=lambda: Histogram(COMPUTE_BUCKETS))
    step_seconds: Histogram = field(default_factory=lambda: Histogram(STEP_BUCKETS))

    def text(self, *, ready: bool, load: int, steps_left: int, busy_s: float, info: Mapping[str, str]) -> str:
        """The page.

        Args:
            ready, load, steps_left: as they are now.
            busy_s: for which the slot was taken since the start.
            info: labels of the model.
        """
        lines = [
            *_gauge("ready", "1 when a warm-up animation has succeeded", int(ready)),
            *_gauge("load", "Requests queued or in flight: 0 or 1", load),
            *_gauge("steps_left", "Steps left of the animation in flight", steps_left),
            *_gauge("model_load_seconds", "Time from start to ready, warm-up included", 0),
            *_head("model_info", "gauge", "Always 1; the labels say what is served"),
            _line("model_info", 1, info),
            *_head("busy_seconds_total", "counter", "Time during which the slot was taken"),
            _line("busy_seconds_total", busy_s),
            *_head("requests_total", "counter", "Requests for an animation"),
            *(_line("requests_total", count, {"outcome": name}) for name, count in self.requests.items()),
            *_head("cancelled_total", "counter", "Computations that were stopped before their end"),
            *(_line("cancelled_total", count, {"reason": name}) for name, count in self.cancelled.items()),
            *_head("runtime_fallback_total", "counter", "Times the packaged program was not used"),
            *(_line("runtime_fallback_total", 0, {"reason": name}) for name in ("load", "shape")),
            *_histogram("step_seconds", "Time of one step", self.step_seconds),
            *_histogram("compute_seconds", "Time of one animation", self.compute_seconds),
        ]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP stillmotion_{name} {text}"
    yield f"# TYPE stillmotion_{name} {kind}"


def _line(name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
    inside = ",".join(f'{key}="{text}"' for key, text in (labels or {}).items())
    return f"stillmotion_{name}{{{inside}}} {value!r}" if inside else f"stillmotion_{name} {value!r}"


def _gauge(name: str, text: str, value: float) -> Iterator[str]:
    yield from _head(name, "gauge", text)
    yield _line(name, value)


def _histogram(name: str, text: str, found: Histogram) -> Iterator[str]:
    yield from _head(name, "histogram", text)
    reached = 0
    for limit, count in zip((*found.limits, "+Inf"), found.counts, strict=True):
        reached += count
        yield _line(f"{name}_bucket", reached, {"le": str(limit)})
    yield _line(f"{name}_sum", found.total)
    yield _line(f"{name}_count", reached)
