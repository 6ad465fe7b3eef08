"""Stands before every endpoint: admits one animation at a time, refuses the rest at once, lets nothing hang.

It runs inside BentoML's metrics and access log, so that refusals are counted and logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, RedirectResponse

from pipeline.errors import Cancelled, InputError

from . import replies
from .admission import HOLDING, Ticket
from .exchange import SCOPE_KEY, Exchange
from .form import boundary_of, parse
from .host import State
from .logs import ABOUT, id_of, request_id
from .metrics import OUTCOMES
from .openapi import describe_api

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .host import Host
    from .tracing import Trace

logger = logging.getLogger("bentoml.stillmotion")

ANIMATE_PATHS = ("/animate", "/animate/stream")


class ClientGoneError(Exception):
    """The client went away, or takes the response too slowly."""


class Sender:
    """One request's way out: knows what was sent, and can be closed to an app that comes too late."""

    def __init__(self, send: Send, limit_s: float) -> None:
        self._send, self._limit_s = send, limit_s
        self.status: int | None = None
        self.closed = False

    async def __call__(self, message: Message) -> None:
        if self.closed:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
        try:
            async with asyncio.timeout(self._limit_s):
                await self._send(message)
        except TimeoutError as error:
            raise ClientGoneError from error


class AdmissionMiddleware:
    """The outermost layer of ours.

    Args:
        app: the application behind it.
        host: holds the slot, the settings and the model.
    """

    def __init__(self, app: ASGIApp, host: Host) -> None:
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sender = Sender(send, self.host.settings.send_s)
        try:
            await self._answer(scope, receive, sender)
        except ClientGoneError:
            logger.info("the client has gone")
        except Exception:
            # What escapes from here would leave the client hanging until BentoML's own time limit.
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if sender.status is None:
                await replies.failure_reply(RuntimeError())(scope, receive, sender)

    async def _answer(self, scope: Scope, receive: Receive, sender: Sender) -> None:
        method, path = scope["method"], scope["path"]
        if path in ANIMATE_PATHS and method == "POST":
            await self._animate(scope, receive, sender)
        elif path == "/" and method in ("GET", "HEAD"):
            await RedirectResponse("ui/")(scope, receive, sender)
        elif path == "/docs.json" and method in ("GET", "HEAD"):
            await JSONResponse(describe_api(self.host))(scope, receive, sender)
        else:
            if path == "/metrics":
                self.host.metrics.count_busy(self.host.slot)
            await self.app(scope, receive, sender)

    async def _animate(self, scope: Scope, receive: Receive, sender: Sender) -> None:
        headers = dict(scope["headers"])
        request_id.set(id_of(headers.get(b"x-request-id")))
        began = time.perf_counter()
        with self.host.tracing.request(scope["method"], scope["path"], headers) as trace:
            status = await self._job(scope, receive, sender, trace)
            outcome = OUTCOMES.get(status, "failed")
            trace.note(request_id=request_id.get(), status=status, outcome=outcome)
        seconds = time.perf_counter() - began
        about = {"path": scope["path"], "status": status, "outcome": outcome, "duration_ms": round(1000 * seconds)}
        logger.info("job %s (%d) after %.3f s", outcome, status, seconds, extra={ABOUT: about})

    async def _job(self, scope: Scope, receive: Receive, sender: Sender, trace: Trace) -> int:
        """One job, admitted or not; the status that it is counted under."""
        host = self.host
        exchange: Exchange | None = None
        try:
            if host.state is not State.READY:
                reply = replies.unavailable_reply(host.state, f"the server is {host.state}", 5.0)
                await reply(scope, receive, sender)
            elif (ticket := host.slot.admit()) is None:
                await replies.busy_reply(host.wait_s())(scope, receive, sender)
            else:
                try:
                    exchange = await self._admitted(ticket, scope, receive, sender, trace)
                finally:
                    ticket.leave()
        except ClientGoneError:
            if sender.status is None:
                # Nobody reads it, but BentoML's time limit waits for a first byte: without one its task
                # would stay for an hour, and a server that is told to stop would wait for it.
                await replies.failure_reply(Cancelled(), "disconnected")(scope, receive, sender)
        except Exception:
            sender.status = sender.status or 500
            raise
        finally:
            status = (exchange.outcome if exchange else None) or sender.status or 500
            host.metrics.requests.labels(outcome=OUTCOMES.get(status, "failed")).inc()
            host.metrics.count_busy(host.slot)
        return status

    async def _admitted(
        self, ticket: Ticket, scope: Scope, receive: Receive, sender: Sender, trace: Trace
    ) -> Exchange | None:
        settings = self.host.settings
        headers = dict(scope["headers"])
        deadline = asyncio.get_running_loop().time() + settings.deadline_s
        try:
            content_type = headers.get(b"content-type", b"").decode("latin-1")
            boundary_of(content_type)
            with trace.part("receive"):
                async with asyncio.timeout(settings.upload_s):
                    body = await read_body(receive, headers, settings.max_body_bytes)
            with trace.part("validate"):
                # In a thread: a large body takes a while to search for boundaries, and health checks go on.
                form = await asyncio.to_thread(parse, body, content_type, settings)
                self.host.engine.check(form.request)
        except InputError as error:
            await replies.failure_reply(error)(scope, receive, sender)
            return None
        except TimeoutError:
            message = f"the request did not arrive within {settings.upload_s:g} seconds"
            reply = replies.error_reply(408, "slow_upload", message, "body")
            reply.headers["Connection"] = "close"
            await reply(scope, receive, sender)
            return None
        exchange = Exchange(ticket, form, trace=trace, request_id=request_id.get())
        await self._watched(exchange, scope, receive, sender, deadline)
        return exchange

    async def _watched(
        self, exchange: Exchange, scope: Scope, receive: Receive, sender: Sender, deadline: float
    ) -> None:
        """Run the endpoint; tell its computation to stop when the client goes or the deadline passes.

        At the deadline the client is answered at once. Its slot stays taken until the step has ended.
        """
        ticket, loop = exchange.ticket, asyncio.get_running_loop()
        gone = asyncio.Event()

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            ticket.cancel("disconnected")
            gone.set()

        async def receive_nothing() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        # The endpoint's own way out, so that it can be shut in one step, whatever the endpoint is about to send.
        way_out = Sender(sender, self.host.settings.send_s)
        watcher = asyncio.create_task(watch())
        endpoint = asyncio.ensure_future(self.app({**scope, SCOPE_KEY: exchange}, receive_nothing, way_out))
        try:
            await asyncio.wait({endpoint}, timeout=max(0.0, deadline - loop.time()))
            if not endpoint.done() and ticket.phase in HOLDING:
                ticket.cancel("deadline")
                if sender.status is None:
                    way_out.closed = True
                    message = f"not finished within {self.host.settings.deadline_s:g} seconds"
                    await replies.error_reply(504, "deadline", message)(scope, receive_nothing, sender)
            await endpoint
        finally:
            watcher.cancel()
            if not endpoint.done():
                endpoint.cancel()


async def read_body(receive: Receive, headers: dict[bytes, bytes], limit: int) -> bytes:
    """The request's body.

    Raises:
        InputError: it is over the limit, by its Content-Length or as it comes (413).
        ClientGoneError: it ended early.
    """
    too_large = InputError("body", "too_large", f"over the limit of {limit} bytes", 413)
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > limit:
        raise too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_large
        if not message.get("more_body", False):
            return bytes(body)
