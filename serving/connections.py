"""Connections that hold nobody up: uvicorn's protocol, with limits for clients that send or read slowly.

uvicorn limits only how long a kept-alive connection may be silent. A client that sends a byte of a header now and then
could keep a connection for ever, and so could one that goes on sending after it has been refused, or that does not read
its answer. The body of an admitted request has limits of its own (`serving.uploads`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import Server

from .outermost import Outermost

if TYPE_CHECKING:
    from .settings import Settings

logger = logging.getLogger("bentoml.stillmotion")


class Waiting(StrEnum):
    """What a connection waits for, where that is the client's turn."""

    REQUEST = "request"
    HEAD = "head"
    REST = "rest"
    CLOSE = "close"


@dataclass(frozen=True)
class Limits:
    """What clients may do to the connections of one server.

    Attributes:
        head_s: from the opening of a connection, or a head's first byte, to its last one.
        rest_s: in which the rest of a body has to arrive that nobody reads any more.
        rest_bytes: of such a rest.
        read_s: in which a client has to take what is sent to it.
        most_waiting: connections without a request; beyond them the one that waits longest is closed. Below the
            usual limit of 1,024 open files, beside uploads and what the process has open itself.
        waiting: those connections, the one that waits longest first.
    """

    head_s: float
    rest_s: float
    rest_bytes: int
    read_s: float
    most_waiting: int = 256
    waiting: dict[LimitedProtocol, None] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the limits of a server with these settings."""
        return cls(settings.headers_s, settings.upload_s, settings.max_body_bytes, settings.send_s)


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 over one connection, within limits."""

    def __init__(self, limits: Limits, **options: Any) -> None:
        super().__init__(**options)
        self._limits = limits
        self._waits_for: Waiting | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._rest_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait(Waiting.HEAD)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waits_for is Waiting.REST:
            self._rest_bytes += len(data)
            if self._rest_bytes > self._limits.rest_bytes:
                self.transport.abort()
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.read_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._write_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        _cancel(self._write_timer)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # an answer is on its way, or has been sent
            self.transport.close()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            # The application may not even have begun: what it sends comes too late.
            cycle.disconnected = True
            cycle.message_event.set()

    def _should_upgrade(self) -> bool:
        return False  # to WebSocket, which nothing here speaks: the request is answered as any other

    def _look(self) -> None:
        """See what the connection waits for now."""
        cycle: RequestResponseCycle | None = self.cycle
        if self.transport.is_closing():
            self._wait(Waiting.CLOSE)
        elif cycle is not None and not cycle.response_complete:
            self._wait(None)
        elif self.conn.their_state is h11.SEND_BODY:
            self._wait(Waiting.REST)
        elif cycle is None or self.conn.trailing_data[0]:
            self._wait(Waiting.HEAD)
        else:
            self._wait(Waiting.REQUEST)

    def _wait(self, what: Waiting | None) -> None:
        if what is self._waits_for:
            return
        limits = self._limits
        self._waits_for = what
        self._rest_bytes = 0
        _cancel(self._timer)
        if what in (Waiting.REQUEST, Waiting.HEAD):
            limits.waiting[self] = None
            if len(limits.waiting) > limits.most_waiting:
                longest = next(iter(limits.waiting))
                del limits.waiting[longest]
                longest.transport.abort()
        else:
            limits.waiting.pop(self, None)
        if what is not None:
            seconds = {
                Waiting.REQUEST: self.timeout_keep_alive,
                Waiting.HEAD: limits.head_s,
                Waiting.REST: limits.rest_s,
                Waiting.CLOSE: limits.read_s,
            }[what]
            self._timer = self.loop.call_later(seconds, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def protect(settings: Settings) -> None:
    """Put `Outermost` and these limits before the application of the server that is about to start.

    Called while the application starts: BentoML gives no other way to the server that it makes, and the server takes
    no connections before. Where something else serves, limits are its business, and the log says so.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not isinstance(server, Server):
        logger.warning("connections have no limits of ours: this process is not served by uvicorn as BentoML runs it")
        return
    config = server.config
    config.loaded_app = Outermost(config.loaded_app)
    config.http_protocol_class = partial(LimitedProtocol, Limits.of(settings))  # type: ignore[assignment]  # it is called
