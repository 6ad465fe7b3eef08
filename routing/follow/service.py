"""The follower as a program: rounds, signals, and pages for those who watch it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ..console import tell
from ..control.service import pages, signals
from ..control.web import listening
from ..envoy.folders import ENDPOINTS
from ..errors import InputError
from ..fleet import Fleet
from .follower import Follower
from .servers import resolve
from .tables import TableSource

_OF_TABLES = {
    "table_version": "Version of the table in the proxy's files; 0: the one that they were made with",
    "table_age_seconds": "Time since the control loop was heard that the table is from",
}
_OF_SERVERS = {
    "servers": "GPU servers in the proxy's files; -1: those that they were made with",
    "servers_age_seconds": "Time since GPU servers were found",
}
_HUNG_AFTER_S = 60.0
"""A follower that has begun no round for so long hangs, and whoever watches `/livez` may start it anew."""


async def serve(
    fleet: Fleet,
    region: str,
    folder: Path,
    control: tuple[str, ...],
    servers: tuple[str, int] | None,
    *,
    interval_s: float,
    listen: str | None,
) -> Follower:
    """Follow until SIGTERM or SIGINT, or for one round.

    Args:
        fleet: that the proxy belongs to.
        region: where it is.
        folder: of its files.
        control: URLs of control loops, the preferred first.
        servers: name and port of GPU servers, or None.
        interval_s: from round to round; 0: one round, and end.
        listen: host and port of the pages, or None.

    Raises:
        InputError: the region is none of the fleet's, or the folder has no files of a proxy.
        RoutingError: the port is taken.
    """
    if region not in fleet.regions:
        raise InputError(f"{region} is none of the fleet's regions", key="--region")
    if not (folder / ENDPOINTS).is_file():
        raise InputError(f"{folder} has no {ENDPOINTS}; write the proxy's files there first (`render`)", key="--folder")
    sources = [TableSource(url, fleet, fleet.metrics.time_limit_s) for url in control]
    follower = Follower(fleet, region, folder, sources, servers, resolve, tell)
    stop = asyncio.Event()
    try:
        if not interval_s:
            await follower.round()
            return follower
        with signals(stop):
            async with _pages(follower, listen):
                await _run(follower, stop, interval_s)
    finally:
        for source in sources:
            await source.close()
    return follower


async def _run(follower: Follower, stop: asyncio.Event, interval_s: float) -> None:
    while not stop.is_set():
        await follower.round()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await stop.wait()


@contextlib.asynccontextmanager
async def _pages(follower: Follower, listen: str | None) -> AsyncIterator[None]:
    if listen is None:
        yield
        return
    with listening(listen) as sock:
        async with pages(make_app(follower), sock):
            yield


def make_app(follower: Follower) -> Starlette:
    """`/livez` and `/metrics`."""
    registry = CollectorRegistry()
    wanted = {
        **(_OF_TABLES if follower.sources else {}),
        **(_OF_SERVERS if follower.servers is not None else {}),
        "problems": "Things that are wrong now",
    }
    gauges = {name: Gauge(f"stillmotion_follow_{name}", text, registry=registry) for name, text in wanted.items()}
    started = monotonic()

    async def livez(_: Request) -> Response:
        if follower.seen.begun_at is None or not follower.seen.rounds:
            # Whoever starts after it is alive finds the files as the first round has left them.
            return PlainTextResponse("the first round has not ended\n", 503)
        silent_s = monotonic() - follower.seen.begun_at
        if silent_s > _HUNG_AFTER_S:
            return PlainTextResponse(f"no round for {silent_s:.0f} s\n", 503)
        return PlainTextResponse("alive\n")

    async def metrics(_: Request) -> Response:
        seen, now = follower.seen, monotonic()
        values = {
            "table_version": float(seen.version or 0),
            "table_age_seconds": now - (seen.table_at or started),
            "servers": float(-1 if seen.servers is None else len(seen.servers)),
            "servers_age_seconds": now - (seen.servers_at or started),
            "problems": float(len(seen.problems)),
        }
        for name, gauge in gauges.items():
            gauge.set(values[name])
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/livez", livez), Route("/metrics", metrics)])
