"""A collector of traces: it takes what OpenTelemetry sends by OTLP over HTTP, and keeps it."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Span:
    """One span, as it was sent; times in seconds."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    began: float
    ended: float
    about: dict[str, object] = field(default_factory=dict)


def value(one):
    kind = one.WhichOneof("value")
    return getattr(one, kind) if kind else None


class Collector:
    """What was sent until now."""

    def __init__(self, server) -> None:
        self.server, self.spans, self.lock = server, [], threading.Lock()
        self.address = f"127.0.0.1:{server.server_port}"

    def take(self, data: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(data)
        for resource in request.resource_spans:
            known = {one.key: value(one.value) for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    about = {one.key: value(one.value) for one in span.attributes}
                    times = (span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9)
                    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                    found = Span(known["service.name"], span.name, *ids, *times, {**known, **about})
                    with self.lock:
                        self.spans.append(found)

    def of(self, service):
        with self.lock:
            return [one for one in self.spans if one.service == service]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        data = self.body()
        assert self.path == "/v1/traces"
        assert self.headers["Content-Type"] == "application/x-protobuf"
        self.server.collector.take(data)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def body(self):
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        data = b""  # as Envoy sends it
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def collecting(port: int):
    """`with collecting(port) as collector`: see `Collector`."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    server.collector = Collector(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.collector
    finally:
        server.shutdown()
        server.server_close()
