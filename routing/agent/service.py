"""The agent as a program: signals, and pages for those who watch it."""

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
from ..control.service import read_token, signals
from ..control.web import listening, serving
from ..envoy.files import ENDPOINTS
from ..errors import InputError
from ..fleet import Fleet
from .agent import Agent, ControlLoop

_GAUGES = {
    "table_version": "Version of the row in the edge's files; 0: the one that they were made with",
    "table_age_seconds": "Time since the control loop was heard that the row is from",
    "problems": "Things that are wrong now",
}
_HUNG_AFTER_S = 60.0
"""An agent that has not looked for so long hangs, and whoever watches `/livez` may start it anew."""
_POLLS = 3.0
"""A loop is heard so many times within `stale_after_s`, whether the row changes or not."""


async def serve(
    fleet: Fleet,
    region: str,
    folder: Path,
    control: tuple[str, ...],
    *,
    token_file: Path | None = None,
    listen: str | None = None,
    once: bool = False,
) -> Agent:
    """Go by control loops until SIGTERM or SIGINT, or ask them once.

    Args:
        fleet: that the edge belongs to.
        region: where it is.
        folder: of its files.
        control: URLs of control loops, the preferred first.
        token_file: of the token that reports show, or None.
        listen: host and port of the pages, or None.
        once: ask each loop once, and end.

    Raises:
        InputError: the region is none of the fleet's, the folder has no files of an edge, or the token is none.
        RoutingError: the port is taken.
    """
    if region not in fleet.regions:
        raise InputError(f"{region} is none of the fleet's regions", key="--region")
    if not (folder / ENDPOINTS).is_file():
        raise InputError(f"{folder} has no {ENDPOINTS}; write the edge's files there first (`render`)", key="--folder")
    token, wait_s = read_token(token_file), fleet.stale_after_s / _POLLS
    loops = [ControlLoop(url, fleet, region, wait_s, token) for url in control]
    agent = Agent(fleet, region, folder, loops, tell)
    stop = asyncio.Event()
    try:
        if once:
            await agent.once()
            return agent
        with signals(stop):
            async with _pages(agent, listen):
                await agent.run(stop)
    finally:
        for loop in loops:
            await loop.close()
    return agent


@contextlib.asynccontextmanager
async def _pages(agent: Agent, listen: str | None) -> AsyncIterator[None]:
    if listen is None:
        yield
        return
    with listening(listen) as sock:
        async with serving(make_app(agent), sock):
            yield


def make_app(agent: Agent) -> Starlette:
    """`/livez` and `/metrics`."""
    registry = CollectorRegistry()
    gauges = {name: Gauge(f"stillmotion_agent_{name}", text, registry=registry) for name, text in _GAUGES.items()}
    started = monotonic()

    async def livez(_: Request) -> Response:
        if not agent.seen.asked or agent.seen.looked_at is None:
            # Whoever starts after it is alive finds the files as the first answers have left them.
            return PlainTextResponse("no control loop was asked yet\n", 503)
        silent_s = monotonic() - agent.seen.looked_at
        if silent_s > _HUNG_AFTER_S:
            return PlainTextResponse(f"it has not looked for {silent_s:.0f} s\n", 503)
        return PlainTextResponse("alive\n")

    async def metrics(_: Request) -> Response:
        seen = agent.seen
        gauges["table_version"].set(seen.row.version if seen.row is not None else 0)
        gauges["table_age_seconds"].set(monotonic() - (seen.heard_at or started))
        gauges["problems"].set(len(seen.problems))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/livez", livez), Route("/metrics", metrics)])
