"""The loop as a program: folder, lock, signals, pages, all in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette

from ..console import tell
from ..envoy.folders import BOOTSTRAP, edge_folder
from ..errors import InputError, RoutingError
from ..fleet import Fleet
from ..metrics.collector import Collector, make_collector
from .controller import Controller
from .envoy import EnvoyPublisher
from .exported import Exported
from .journal import NAME, Journal
from .leader import Leader
from .loop import Loop, Snapshot, wall_clock
from .published import Published
from .publishing import TABLE, FolderPublisher, Publishers
from .saved import last_good
from .status import Status, status
from .web import listening, make_app, make_server

_HUNG_AFTER = 10.0
"""Rounds. A loop that has begun none for so long hangs, and whoever watches `/livez` may start it anew."""


@dataclass(frozen=True)
class Options:
    """How the program was called.

    Attributes:
        out: folder to publish into.
        envoy: folder that the fleet's Envoys watch, or None.
        interval_s: of the loop.
        prometheus: URL of one that has the metrics, or None.
        listen: host and port of the pages.
        once: one decision, and no pages.
        standby: wait for the lock.
    """

    out: Path
    envoy: Path | None
    interval_s: float
    prometheus: str | None
    listen: str
    once: bool
    standby: bool


async def serve(fleet: Fleet, options: Options, wall: Callable[[], datetime] = wall_clock) -> dict[str, Any]:
    """Run until SIGTERM or SIGINT; the last status.

    Args:
        fleet: whose traffic it is.
        options: how the program was called.
        wall: the time of day.

    Raises:
        InputError: no machine is known, or an argument cannot be used.
        RoutingError: another loop publishes into the folder, or it cannot be written, or the port is taken.
    """
    stop = asyncio.Event()
    collector = make_collector(fleet, _url(options.prometheus))
    try:
        with signals(stop), Leader(_folder(options.out)) as leader:
            if options.standby and not leader.take():
                tell(f"standby: {leader.holder()} publishes into {options.out}")
                if not await leader.wait(stop):
                    raise KeyboardInterrupt
            elif not options.standby and not leader.take():
                text = f"{leader.holder()} publishes there already; stop it, choose another --out, or use --standby"
                raise RoutingError(f"{options.out}: {text}")
            return await _lead(fleet, options, collector, stop, wall)
    finally:
        await collector.close()


async def _lead(
    fleet: Fleet, options: Options, collector: Collector, stop: asyncio.Event, wall: Callable[[], datetime]
) -> dict[str, Any]:
    controller = Controller.of(fleet)
    if options.once:
        controller = replace(controller, policy=replace(controller.policy, warm_up_s=0.0))
    journal = Journal(options.out / NAME, wall)
    first = controller.at_home().model_copy(update={"generated_at": wall()})
    envoys = _envoys(fleet, options.envoy)
    loop = Loop(
        controller,
        collector,
        Publishers([FolderPublisher(options.out), *envoys]),
        journal,
        last_good(options.out / TABLE, fleet, first),
        options.interval_s,
        wall=wall,
    )

    def now() -> Status:
        return status(fleet, loop.snapshot, journal, monotonic(), options.interval_s)

    if options.once:
        await loop.run(stop, rounds=2)
        return now().to_dict()
    exported = Exported()

    def watch(snapshot: Snapshot) -> None:
        kinds = [str(one.kind) for one in snapshot.observation.oddities] if snapshot.observation else []
        exported.update(now(), snapshot.took_s, kinds)

    def live() -> str:
        begun = loop.snapshot.begun_at
        silent_s = 0.0 if begun is None else monotonic() - begun
        return f"no round for {silent_s:.0f} s" if silent_s > _HUNG_AFTER * options.interval_s else ""

    def published() -> dict[str, Any]:
        known = now()
        shares = {name: region.delay_share for name, region in known.regions.items()}
        found = Published(table=loop.snapshot.table, delay_share=shares, not_ready=known.not_ready)
        return found.to_dict()

    def series() -> bytes:
        well_at = loop.snapshot.well_at
        return exported.page(None if well_at is None else monotonic() - well_at)

    loop.watch = watch
    with listening(options.listen) as sock:
        tell(f"status page at http://{options.listen}/")
        async with pages(make_app(now, series, published, live=live), sock):
            await loop.run(stop)
    return now().to_dict()


def _envoys(fleet: Fleet, root: Path | None) -> list[EnvoyPublisher]:
    if root is None:
        return []
    for region in fleet.names:
        if not (edge_folder(root, region) / BOOTSTRAP).is_file():
            text = f"{root} has no edge of {region}; write its files with `render --target envoy`"
            raise InputError(text, key="--envoy")
    return [EnvoyPublisher(root, fleet)]


@contextlib.asynccontextmanager
async def pages(app: Starlette, sock: socket.socket) -> AsyncIterator[None]:
    """Serve them while the block runs."""
    server = make_server(app)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


@contextlib.contextmanager
def signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT end the loop after its round, instead of in the midst of it."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RoutingError(f"{out}: cannot be made ({error.strerror})") from error
    return out


def _url(text: str | None) -> str | None:
    if text is not None and (urlsplit(text).scheme not in {"http", "https"} or not urlsplit(text).hostname):
        raise InputError(f"{text} is no address such as http://127.0.0.1:9090", key="--prometheus")
    return text
