"""The loop's pages: `/` for people, `/rows/REGION` for agents, `/switches/...` for operators, the rest for programs.

Whoever may change something shows a token, if the loop has one; without one, switches cannot be used. The pages name
machines, so they listen on loopback unless told otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..errors import InputError, RoutingError
from ..files import parse_json
from ..fleet import Fleet
from ..page import rendered
from .loop import Loop
from .rows import Row
from .status import Status
from .switches import Switches

POLL_S = 5.0
"""A poll without `wait` is answered by then."""
LARGEST_REPORT = 2**20
"""Bytes of a report; a row of a thousand regions has 40 KB."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Pages:
    """What the pages are made of.

    Attributes:
        fleet: whose traffic it is.
        loop: that is shown.
        switches: that operators use.
        status: gives how things are.
        metrics: gives the text for Prometheus.
        live: says what is wrong with the loop itself; empty: nothing.
        token: that whoever changes something must show; None: there is none, and switches cannot be used.
    """

    fleet: Fleet
    loop: Loop
    switches: Switches
    status: Callable[[], Status]
    metrics: Callable[[], bytes]
    live: Callable[[], str]
    token: str | None = None

    def app(self) -> Starlette:
        """The pages as an application."""
        switches = "/switches/{switch}"
        return Starlette(
            routes=[
                Route("/", self._page),
                Route("/status.json", self._document),
                Route("/metrics", self._series),
                Route("/livez", self._livez),
                Route("/readyz", self._readyz),
                Route("/rows/{region}", self._row),
                Route("/rows/{region}", self._report, methods=["PUT"]),
                Route("/round-trips/{region}", self._round_trips, methods=["PUT"]),
                *(Route(path, self._switch, methods=["POST"]) for path in (switches, switches + "/{region}")),
            ],
            exception_handlers={InputError: _refused, RoutingError: _refused},
        )

    async def _page(self, _: Request) -> Response:
        return HTMLResponse(render(self.status()), headers=_HEADERS)

    async def _document(self, _: Request) -> Response:
        return JSONResponse(self.status().to_dict(), headers=_HEADERS)

    async def _series(self, _: Request) -> Response:
        return Response(self.metrics(), media_type=CONTENT_TYPE_LATEST, headers=_HEADERS)

    async def _livez(self, _: Request) -> Response:
        problem = self.live()
        return _text(problem or "alive", 503 if problem else 200)

    async def _readyz(self, _: Request) -> Response:
        problem = self.live() or self.loop.snapshot.not_ready
        return _text(problem or "ready", 503 if problem else 200)

    async def _row(self, request: Request) -> Response:
        region = self._region(request)
        after, wait = request.query_params.get("after", ""), request.query_params.get("wait", f"{POLL_S:g}")
        try:
            seconds = float(wait)
        except ValueError:
            raise InputError(f"is {wait[:40]!r}, and should be a number of seconds", key="wait") from None
        found = await self.loop.rows.wait(region, after, seconds)
        if found is None:
            return Response(status_code=304, headers={"Cache-Control": "no-store", "ETag": f'"{after}"'})
        tag, content = found
        return Response(content, media_type="application/json", headers=_HEADERS | {"ETag": f'"{tag}"'})

    async def _report(self, request: Request) -> Response:
        region = self._region(request)
        self._allow(request, needed=False)
        self.loop.report(Row.from_json(await _body(request), self.fleet, region))
        return Response(status_code=204)

    async def _round_trips(self, request: Request) -> Response:
        region = self._region(request)
        self._allow(request, needed=False)
        measured = parse_json(await _body(request))
        if not isinstance(measured, Mapping):
            raise InputError("should hold milliseconds by region")
        for to, ms in measured.items():
            if to not in self.fleet.regions or to == region:
                raise InputError("is no other region of the fleet", key=str(to)[:80])
            if isinstance(ms, bool) or not isinstance(ms, int | float) or not 0 < ms < 60_000:
                raise InputError(f"is {str(ms)[:40]}, and should be milliseconds, above 0 and below 60000", key=to)
        self.loop.round_trips.take(region, {to: float(ms) for to, ms in measured.items()})
        return Response(status_code=204)

    async def _switch(self, request: Request) -> Response:
        self._allow(request, needed=True)
        switch, region = request.path_params["switch"], request.path_params.get("region")
        if switch == "freeze" and region is None:
            self.switches.freeze()
        elif switch == "drain-region" and region is not None:
            self.switches.drain(region)
        elif switch == "resume":
            self.switches.resume(region)
        else:
            raise InputError("there are /switches/freeze, /switches/drain-region/REGION and /switches/resume[/REGION]")
        self.loop.update_rows()  # retries leave a drained region at once
        return _text(self.switches.text or "nothing is frozen or drained")

    def _region(self, request: Request) -> str:
        name: str = request.path_params["region"]
        if name not in self.fleet.regions:
            raise InputError(f"{name[:80]} is none of the fleet's regions")
        return name

    def _allow(self, request: Request, *, needed: bool) -> None:
        if self.token is None:
            if needed:
                raise RoutingError("this control loop takes no orders: it was started without a token")
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, self.token.encode()):
            raise RoutingError("the token is missing or another; it goes into the header authorization: Bearer TOKEN")


def _text(text: str, status: int = 200) -> Response:
    return PlainTextResponse(f"{text}\n", status, headers=_HEADERS)


async def _refused(_: Request, error: Exception) -> Response:
    return _text(str(error), 400 if isinstance(error, InputError) else 403)


async def _body(request: Request) -> str:
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > LARGEST_REPORT:
            raise InputError(f"has more than {LARGEST_REPORT // 2**20} MiB")
    return found.decode("utf-8", errors="replace")


def listening(address: str) -> socket.socket:
    """Open a socket that listens there.

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
            (host.strip("[]"), int(port)),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=1024,  # all agents of a large fleet come back at once when a loop starts
        )
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error  # its own text has the address once more
        text = f"cannot listen on {address} ({why}); choose another with --listen"
        raise RoutingError(text) from error


class _Server(uvicorn.Server):
    """Serves the pages in the loop's own event loop, and leaves signals to it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(app: Starlette, sock: socket.socket) -> AsyncIterator[None]:
    """Serve pages while the block runs. Connections are not limited: each agent holds one, and asks little."""
    server = _Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=60,
            # Whoever reads slowly, or waits for a row, does not keep the loop from stopping.
            timeout_graceful_shutdown=1,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


def render(status: Status) -> str:
    """Return the page of a status."""
    return rendered(Path(__file__).parent / "page.html.j2", status=status)
