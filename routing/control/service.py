"""The loop as a program: folder, lock, signals, pages, all in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

from ..console import tell
from ..envoy.files import BOOTSTRAP, edge_folder
from ..errors import InputError, RoutingError
from ..files import read_text
from ..fleet import Fleet
from ..metrics.pages import Collector, make_collector
from .controller import Controller
from .journal import NAME, Journal
from .loop import Loop, Snapshot, wall_clock
from .publishing import TABLE, EnvoyPublisher, FolderPublisher, Leader, Publishers, last_good
from .status import Exported, Status, status
from .switches import Switches
from .web import Pages, listening, serving

_HUNG_AFTER = 10.0
"""Rounds. A loop that has begun none for so long hangs, and whoever watches `/livez` may start it anew."""
_SHORTEST_TOKEN = 16
TOKEN = "STILLMOTION_CONTROL_TOKEN"  # noqa: S105  # the name of a variable
"""In it pods have the token, from a Secret that may be missing."""


@dataclass(frozen=True)
class Options:
    """How the program was called.

    Attributes:
        base: folder of the fleet file, which its paths are seen from.
        out: folder to publish into.
        envoy: folder that the fleet's edges watch, or None.
        interval_s: of the loop.
        prometheus: URL of one that has the metrics, or None.
        listen: host and port of the pages.
        token_file: of the token that operators show, or None.
        once: one decision, and no pages.
        standby: wait for the lock.
    """

    base: Path
    out: Path
    envoy: Path | None
    interval_s: float
    prometheus: str | None
    listen: str
    token_file: Path | None
    once: bool
    standby: bool


async def serve(fleet: Fleet, options: Options, wall: Callable[[], datetime] = wall_clock) -> dict[str, Any]:
    """Run until SIGTERM or SIGINT; the last status.

    Args:
        fleet: whose traffic it is.
        options: how the program was called.
        wall: the time of day.

    Raises:
        InputError: no proxy is known, or an argument cannot be used.
        RoutingError: another loop publishes into the folder, or it cannot be written, or the port is taken.
    """
    stop = asyncio.Event()
    token = read_token(options.token_file)
    collector = make_collector(fleet, options.base, options.prometheus)
    try:
        with signals(stop), Leader(_folder(options.out)) as leader:
            if options.standby and not leader.take():
                tell(f"standby: {leader.holder()} publishes into {options.out}")
                if not await leader.wait(stop):
                    raise KeyboardInterrupt
            elif not options.standby and not leader.take():
                text = f"{leader.holder()} publishes there already; stop it, choose another --out, or use --standby"
                raise RoutingError(f"{options.out}: {text}")
            return await _lead(fleet, options, collector, token, stop, wall)
    finally:
        await collector.close()


async def _lead(
    fleet: Fleet,
    options: Options,
    collector: Collector,
    token: str | None,
    stop: asyncio.Event,
    wall: Callable[[], datetime],
) -> dict[str, Any]:
    controller = Controller(fleet)
    if options.once:
        controller = replace(controller, warm_up_s=0.0)
    journal = Journal(options.out / NAME, wall)
    switches = Switches(options.out, fleet, journal)
    first = controller.at_home().model_copy(update={"generated_at": wall()})
    loop = Loop(
        controller,
        collector,
        Publishers([FolderPublisher(options.out), *_edges(fleet, options.envoy)]),
        journal,
        last_good(options.out / TABLE, fleet, first),
        options.interval_s,
        switches,
        wall=wall,
    )

    def now() -> Status:
        return status(fleet, loop.snapshot, journal, monotonic(), options.interval_s, switches)

    if options.once:
        await loop.run(stop, rounds=2)
        return now().to_dict()
    exported = Exported()

    def watch(snapshot: Snapshot) -> None:
        kinds = [str(one.kind) for one in snapshot.observation.problems] if snapshot.observation else []
        exported.update(now(), snapshot.took_s, kinds)

    def live() -> str:
        begun = loop.snapshot.begun_at
        silent_s = 0.0 if begun is None else monotonic() - begun
        return f"no round for {silent_s:.0f} s" if silent_s > _HUNG_AFTER * options.interval_s else ""

    def series() -> bytes:
        well_at = loop.snapshot.well_at
        return exported.page(None if well_at is None else monotonic() - well_at)

    loop.watch = watch
    pages = Pages(fleet, loop, switches, now, series, live, token)
    with listening(options.listen) as sock:
        tell(f"status page at http://{options.listen}/")
        async with serving(pages.app(), sock):
            await loop.run(stop)
    return now().to_dict()


def read_token(path: Path | None) -> str | None:
    """Read the token of operators, from a file or else from the environment (`TOKEN`); None where there is neither.

    Raises:
        InputError: it cannot be read, or is too short to keep anybody out.
    """
    token = (os.environ.get(TOKEN, "") if path is None else read_text(path)).strip()
    if path is None and not token:
        return None
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        text = f"holds no token of at least {_SHORTEST_TOKEN} printable ASCII characters"
        raise InputError(text, file=str(path or TOKEN))
    return token


def _edges(fleet: Fleet, root: Path | None) -> list[EnvoyPublisher]:
    if root is None:
        return []
    for region in fleet.names:
        if not (edge_folder(root, region) / BOOTSTRAP).is_file():
            text = f"{root} has no edge of {region}; write its files with `render --target envoy`"
            raise InputError(text, key="--envoy")
    return [EnvoyPublisher(root, fleet)]


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
