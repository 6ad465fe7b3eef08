"""Traces: where the time of one request goes, from its first byte to the encoded video, sent by OTLP over HTTP.

A request is traced when whoever calls says so (`traceparent` with its flag, as an edge sets it): which share of the
traffic that is, the edge decides, which sees all of it. Without `STILLMOTION_TRACES` nothing of OpenTelemetry is loaded
here, and a request that is not traced costs a look at a header.

    POST /animate
      receive          the body, as fast as the client sends it
      validate         the form and the picture's header
      decode picture
      queue            until the compute thread takes it
      compute
        encode image, encode prompt, step (each), decode latents
      encode video
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from .settings import SettingsError

if TYPE_CHECKING:
    from pipeline.spans import Listener

    from .settings import Settings

_TOLD_EVERY_S = 60.0
_MISSING = "STILLMOTION_TRACES is set, and what sends traces is not installed: pip install 'stillmotion[serve]'"


class Trace:
    """One request's trace; this one is of a request that is not traced."""

    def part(self, name: str, about: Mapping[str, int | float | str] | None = None) -> AbstractContextManager[object]:
        """Around what is to have a name and a time of its own."""
        return nullcontext()

    def waited(self, name: str, since_ns: int) -> None:
        """A part that began at that time (`time.time_ns`) and ends now."""

    @contextmanager
    def around(self, name: str) -> Iterator[Listener | None]:
        """A part that has parts: gives what is to be told of them (`pipeline.spans.listen`), or None."""
        yield None

    def note(self, **about: float | str) -> None:
        """Something to know of the request."""


NOT_TRACED = Trace()


class Tracing:
    """Where traces come from; this one makes none."""

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Iterator[Trace]:
        """The trace of one request, until it ends."""
        yield NOT_TRACED

    def close(self) -> None:
        """Send what is left."""


def check_tracing(settings: Settings) -> None:
    """See that what the settings want can be done.

    Raises:
        SettingsError: traces are wanted, and the packages for them are not there.
    """
    try:
        wanted = settings.traces is not None
        missing = wanted and importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is None
    except ModuleNotFoundError:  # of a package around it
        missing = True
    if missing:
        raise SettingsError(_MISSING)


def make_tracing(settings: Settings) -> Tracing:
    """As the settings have it; see `check_tracing`."""
    if settings.traces is None:
        return Tracing()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

    logging.getLogger("opentelemetry").addFilter(_NowAndThen())
    resource = Resource.create({"service.name": "stillmotion-gpu", "stillmotion.region": settings.region})
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF), resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.traces, timeout=5)))
    return _OpenTelemetry(provider)


class _OpenTelemetry(Tracing):
    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._tracer = provider, provider.get_tracer("stillmotion")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Iterator[Trace]:
        if b"traceparent" not in headers:
            yield NOT_TRACED
            return
        from opentelemetry.trace import SpanKind

        names = (b"traceparent", b"tracestate")
        carrier = {name.decode(): headers[name].decode("latin-1") for name in names if name in headers}
        about = {"http.request.method": method, "url.path": path}
        parent = self._propagator.extract(carrier)
        span = self._tracer.start_span(f"{method} {path}", parent, SpanKind.SERVER, about)
        try:
            yield _Traced(self._tracer, span) if span.is_recording() else NOT_TRACED
        finally:
            span.end()

    def close(self) -> None:
        self._provider.shutdown()


class _Traced(Trace):
    def __init__(self, tracer: Any, span: Any) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer, self._span = tracer, span
        self._context = set_span_in_context(span)

    @contextmanager
    def part(self, name: str, about: Mapping[str, int | float | str] | None = None) -> Iterator[object]:
        span = self._tracer.start_span(name, self._context, attributes=dict(about or {}))
        try:
            yield span
        finally:
            span.end()

    def waited(self, name: str, since_ns: int) -> None:
        self._tracer.start_span(name, self._context, start_time=since_ns).end()

    @contextmanager
    def around(self, name: str) -> Iterator[Listener | None]:
        with self.part(name) as span:
            yield _Traced(self._tracer, span).part

    def note(self, **about: float | str) -> None:
        for key, value in about.items():
            self._span.set_attribute(f"stillmotion.{key}", value)


class _NowAndThen(logging.Filter):
    """A collector that is away is told of once a minute, and not with each batch."""

    def __init__(self) -> None:
        super().__init__()
        self._told_at = -_TOLD_EVERY_S

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._told_at < _TOLD_EVERY_S:
            return False
        self._told_at = now
        record.exc_info = None
        return True
