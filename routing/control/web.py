"""The loop's own pages: `/` is for people; `/status.json`, `/published.json` and the others are for programs.

They only show; nothing can be changed through them. They name machines, so they listen on loopback unless told
otherwise.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..errors import InputError, RoutingError
from .page import render
from .status import Status

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


def make_app(
    status: Callable[[], Status],
    metrics: Callable[[], bytes],
    published: Callable[[], Mapping[str, Any]],
    *,
    live: Callable[[], str],
) -> Starlette:
    """The pages.

    Args:
        status: gives what they show.
        metrics: gives the text for Prometheus.
        published: gives what followers take over.
        live: says what is wrong with the loop itself; empty: nothing.
    """

    async def page(_: Request) -> Response:
        return HTMLResponse(render(status()), headers=_HEADERS)

    async def document(_: Request) -> Response:
        return JSONResponse(status().to_dict(), headers=_HEADERS)

    async def table(_: Request) -> Response:
        return JSONResponse(published(), headers=_HEADERS)

    async def series(_: Request) -> Response:
        return Response(metrics(), media_type=CONTENT_TYPE_LATEST, headers=_HEADERS)

    async def livez(_: Request) -> Response:
        problem = live()
        return PlainTextResponse(f"{problem or 'alive'}\n", 503 if problem else 200, headers=_HEADERS)

    async def readyz(_: Request) -> Response:
        problem = live() or status().not_ready
        return PlainTextResponse(f"{problem or 'ready'}\n", 503 if problem else 200, headers=_HEADERS)

    pages = {
        "/": page,
        "/status.json": document,
        "/published.json": table,
        "/metrics": series,
        "/livez": livez,
        "/readyz": readyz,
    }
    return Starlette(routes=[Route(path, answer) for path, answer in pages.items()])


def listening(address: str) -> socket.socket:
    """A socket that listens there.

    Args:
        address: host and port.

    Raises:
        InputError: it is no address.
        RoutingError: it is taken, or not of this machine.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) >= 2**16:
        raise InputError(f"{address} is no host and port, such as 127.0.0.1:9900", key="--listen")
    try:
        return socket.create_server(
            (host.strip("[]"), int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error  # its own text has the address once more
        text = f"cannot listen on {address} ({why}); choose another with --listen"
        raise RoutingError(text) from error


class Server(uvicorn.Server):
    """Serves the pages in the loop's own event loop, and leaves signals to it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: Starlette) -> Server:
    """A server of the pages."""
    return Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            # Whoever reads slowly, or keeps a page open, does not keep the loop from stopping.
            timeout_graceful_shutdown=1,
            limit_concurrency=100,
        )
    )
