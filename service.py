"""HTTP in, video out, one request at a time: `bentoml serve` from the repository's root."""

# mypy: disable-error-code="untyped-decorator,attr-defined"
# BentoML's decorators have no types, and turn the class into a `Service`.

from __future__ import annotations

import bentoml
from starlette.responses import Response

from serving import lifecycle
from serving.connections import protect
from serving.endpoints import animate, animate_stream
from serving.exchange import AnimateInput, Events, Exchange, VideoFile
from serving.host import Host
from serving.metrics import Metrics
from serving.middleware import AdmissionMiddleware
from serving.page import page

settings = lifecycle.settings_or_exit()


def model_name() -> str:
    """Tag or folder of the model that is served."""
    return lifecycle.model_name(settings, Stillmotion)


host = Host(settings, lambda: lifecycle.load(model_name(), settings), lifecycle.fail, Metrics)


# `concurrency` is what BentoCloud's autoscaler reads. BentoML's own limit would answer 429 without
# Retry-After, and its own time limit would free the slot under a running computation: the middleware
# owns both, and this time limit is out of its way. The access log is ours (serving/outermost.py). Few buckets keep
# /metrics short: BentoML has a histogram for each path and status.
@bentoml.service(
    name="stillmotion",
    workers=1,
    traffic={"timeout": 3600, "concurrency": 1},
    logging={"access": {"enabled": False}},
    metrics={"duration": {"buckets": [0.005, 0.05, 0.5, 2.0, 5.0, 15.0, 60.0]}},
)
@bentoml.asgi_app(page(host), path="/ui")
class Stillmotion:
    """Turns a still picture and a prompt into a short animation."""

    def __init__(self) -> None:
        host.start()

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        lifecycle.check_deployment(model_name())

    @bentoml.on_startup
    async def take_over(self) -> None:
        protect(settings)
        lifecycle.drain_on_signals(host)

    async def __is_ready__(self) -> bool:
        return host.ready

    @bentoml.api(route="/animate", input_spec=AnimateInput, output_spec=VideoFile)
    async def animate(self, exchange: Exchange) -> Response:
        """Animate a picture; the video is the response."""
        return await animate(host, exchange)

    @bentoml.api(route="/animate/stream", input_spec=AnimateInput, output_spec=Events)
    async def animate_stream(self, exchange: Exchange) -> Response:
        """Animate a picture; the response is a stream of events with progress and, at the end, the video."""
        return await animate_stream(host, exchange)


Stillmotion.add_asgi_middleware(AdmissionMiddleware, host=host)
