"""The two ways to get an animation: in one response, or as events with progress and the video at the end."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING

from starlette.responses import Response, StreamingResponse

from pipeline.errors import Cancelled, ModelError, StillmotionError

from .replies import CLIENT_GONE, failure_reply, video_headers, video_reply

if TYPE_CHECKING:
    from pipeline.serve.engine import StepListener

    from .exchange import Exchange
    from .host import Host, Video

logger = logging.getLogger("bentoml.stillmotion")

# Comments in between keep proxies from cutting a stream that is silent during a long step.
_HEARTBEAT_S = 10.0


async def animate(host: Host, exchange: Exchange) -> Response:
    """Make the video and send it whole."""
    try:
        video = await _computed(host, exchange)
    except Exception as error:  # noqa: BLE001  # BentoML would answer in a shape of its own
        return _failed(exchange, error)
    return video_reply(video, host.engine.name, host.settings.region)


async def animate_stream(host: Host, exchange: Exchange) -> Response:
    """Make the video and tell of each step; see `_events`. Errors before the first step have their status."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()

    def on_step(done: int, total: int) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, (done, total))

    computation = asyncio.ensure_future(_computed(host, exchange, on_step))

    def on_end(done: asyncio.Future[Video]) -> None:
        if not done.cancelled():
            done.exception()  # seen: when the client has gone, nobody else asks for it
        queue.put_nowait(None)

    computation.add_done_callback(on_end)
    if await queue.get() is None:  # ended before it began: a damaged picture, mostly
        try:
            await computation
        except Exception as error:  # noqa: BLE001  # as above
            return _failed(exchange, error)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Stillmotion-Region": host.settings.region}
    events = _events(host, exchange, computation, queue)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _events(
    host: Host,
    exchange: Exchange,
    computation: asyncio.Future[Video],
    queue: asyncio.Queue[tuple[int, int] | None],
) -> AsyncIterator[bytes]:
    """`start` {steps, left_s}, `step` {step, steps, left_s} after each, then `result` or `error`.

    The video travels in `result`, in base64: behind a load balancer a second request for it would
    reach another server.
    """
    steps = host.engine.evaluations(exchange.prepared.form.request)
    exchange.outcome = CLIENT_GONE  # so it is when this generator is closed before its end
    yield _event("start", {"steps": steps, "model": host.engine.name, "left_s": round(host.wait_s(), 2)})
    while True:
        try:
            item = await asyncio.wait_for(queue.get(), _HEARTBEAT_S)
        except TimeoutError:
            yield b": still computing\n\n"
            continue
        if item is None:
            break
        done, total = item
        yield _event("step", {"step": done, "steps": total, "left_s": round(host.wait_s(), 2)})
    try:
        video = await computation
    except Exception as error:  # noqa: BLE001  # the stream has begun: the error is its last event
        reply = _failed(exchange, error)
        exchange.outcome = reply.status_code
        yield _event("error", json.loads(bytes(reply.body)))
        return
    exchange.outcome = None
    names = {
        name.removeprefix("X-Stillmotion-").lower().replace("-", "_"): value
        for name, value in video_headers(video, host.engine.name, host.settings.region).items()
    }
    data = base64.b64encode(video.data).decode("ascii")
    yield _event("result", {**names, "format": video.format, "media_type": video.media_type, "data": data})


async def _computed(host: Host, exchange: Exchange, on_step: StepListener | None = None) -> Video:
    loop = asyncio.get_running_loop()
    compute = partial(host.compute, exchange, on_step, time.time_ns())
    return await asyncio.wrap_future(await loop.run_in_executor(host.executor, compute))


def _failed(exchange: Exchange, error: Exception) -> Response:
    if isinstance(error, ModelError):
        logger.error("an animation failed: %s", error)
    elif not isinstance(error, StillmotionError):
        logger.error("an animation failed", exc_info=error)
    return failure_reply(error, exchange.ticket.reason if isinstance(error, Cancelled) else None)


def _event(name: str, data: dict[str, object]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
