"""Stands before every endpoint: admits one animation at a time, refuses the rest at once, lets nothing hang.

It runs inside BentoML's metrics and our access log (`serving.outermost`), so that refusals are counted and logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, RedirectResponse

from pipeline.errors import Cancelled, InputError

from . import replies
from .exchange import SCOPE_KEY, Exchange
from .form import boundary_of
from .host import State
from .logs import ABOUT, id_of, request_id
from .metrics import OUTCOMES
from .openapi import describe_api
from .outermost import requested
from .paths import ANIMATE, is_ours, without_slash
from .uploads import ClientGoneError, TooManyUploadsError

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .host import Host, Prepared
    from .tracing import Trace

logger = logging.getLogger("bentoml.stillmotion")


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
    """What a request meets before BentoML's routes.

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
        scope = requested(scope)
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
        if path in ANIMATE and method == "POST":
            await self._animate(scope, receive, sender)
        elif path == "/" and method in ("GET", "HEAD"):
            await RedirectResponse("ui/")(scope, receive, sender)
        elif path == "/docs.json" and method in ("GET", "HEAD"):
            await JSONResponse(describe_api(self.host))(scope, receive, sender)
        elif is_ours(path):
            if path == "/metrics":
                self.host.metrics.count_busy(self.host.slot)
            await self.app(scope, receive, sender)
        elif (known := without_slash(path)) is not None:
            # Starlette's own redirect names the host that the request named, whoever that is.
            await RedirectResponse(known)(scope, receive, sender)
        else:
            await replies.error_reply(404, "not_found", "there is nothing at this path")(scope, receive, sender)

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
            if (refusal := self._refusal()) is not None:
                await refusal(scope, receive, sender)
            elif (prepared := await self._received(scope, receive, sender, trace)) is None:
                pass  # it has been answered
            elif (refusal := self._refusal()) is not None or (ticket := host.slot.admit()) is None:
                await (refusal or self._busy())(scope, receive, sender)
            else:
                exchange = Exchange(ticket, prepared, trace=trace, request_id=request_id.get())
                try:
                    host.uploads.interrupt()
                    await self._watched(exchange, scope, receive, sender)
                finally:
                    ticket.leave()
        except ClientGoneError:
            if sender.status is None:
                # Nobody reads it, but BentoML's time limit waits for a first byte: without one its task
                # would stay for an hour, and a server that is told to stop would wait for it.
                await replies.failure_reply(Cancelled(), "disconnected")(scope, receive, sender)
        finally:
            status = (exchange.outcome if exchange else None) or sender.status or 500
            host.metrics.requests.labels(outcome=OUTCOMES.get(status, "failed")).inc()
            host.metrics.count_busy(host.slot)
        return status

    def _refusal(self) -> Response | None:
        """What a request is told that cannot be admitted now; None for one that can."""
        host = self.host
        if host.state is not State.READY:
            return replies.unavailable_reply(host.state, f"the server is {host.state}", 5.0)
        return self._busy() if host.slot.load else None

    def _busy(self) -> Response:
        return replies.busy_reply(self.host.wait_s())

    async def _received(self, scope: Scope, receive: Receive, sender: Sender, trace: Trace) -> Prepared | None:
        """The request, checked and with its picture; None where it has been answered already.

        Nothing of it holds the slot. As soon as another request has the slot, this one is refused.
        """
        host, settings = self.host, self.host.settings
        headers = dict(scope["headers"])
        upload = None
        try:
            content_type = headers.get(b"content-type", b"").decode("latin-1")
            boundary_of(content_type)
            async with host.uploads.begin(settings.upload_s) as upload:
                with trace.part("receive"):
                    body = await upload.read(receive, headers, settings.max_body_bytes)
                prepare = partial(host.prepare, body, content_type, trace)
                # In a thread: it takes a while, and health checks go on.
                return await asyncio.get_running_loop().run_in_executor(host.preparer, prepare)
        except InputError as error:
            reply: Response = replies.failure_reply(error)
        except TooManyUploadsError:
            reply = self._busy()
        except TimeoutError:
            if upload is not None and upload.interrupted:
                reply = self._refusal() or self._busy()
            else:
                message = f"the request did not arrive within {settings.upload_s:g} seconds"
                reply = replies.error_reply(408, "slow_upload", message, "body")
                reply.headers["Connection"] = "close"
        await reply(scope, receive, sender)
        return None

    async def _watched(self, exchange: Exchange, scope: Scope, receive: Receive, sender: Sender) -> None:
        """Run the endpoint; tell its computation to stop when the client goes or the deadline passes.

        At the deadline the client is answered at once. Its slot stays taken until the step has ended.
        """
        ticket = exchange.ticket
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
            await asyncio.wait({endpoint}, timeout=self.host.settings.deadline_s)
            if not endpoint.done() and not exchange.finished:
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
