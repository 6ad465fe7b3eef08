"""Rounds of a follower: ask, choose, write. What it cannot learn it leaves as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from ..control.published import Published
from ..dispatcher.runtime import set_servers
from ..envoy import delay
from ..envoy.edge import edge_endpoints
from ..envoy.folders import ENDPOINTS, RUNTIME, write_endpoints, write_runtime
from ..errors import RoutingError
from ..fleet import Fleet
from .servers import Resolve
from .tables import Choice, TableSource


@dataclass
class Seen:
    """How a follower stands.

    Attributes:
        rounds: that have ended.
        version: of the table in the files; None: still the one that they were made with.
        source: URL of the control loop that it is from.
        table_at, servers_at: monotonic seconds of the last round that learnt of them.
        servers: addresses in the files; None: still those that they were made with.
        begun_at: of the last round that began.
        problems: what is wrong now, by what it is about.
    """

    rounds: int = 0
    version: int | None = None
    source: str = ""
    table_at: float | None = None
    servers_at: float | None = None
    servers: tuple[str, ...] | None = None
    begun_at: float | None = None
    problems: dict[str, str] = field(default_factory=dict)


@dataclass
class Follower:
    """Keeps the files of one proxy.

    Attributes:
        fleet: that it belongs to.
        region: where the proxy is.
        folder: of its files, which are there.
        sources: control loops, the preferred first; for an edge.
        servers: name and port of the GPU servers; for an ingress.
        resolve: looks it up.
        tell: told of what goes wrong and is well again, in one line each.
        clock: seconds that never go back.
    """

    fleet: Fleet
    region: str
    folder: Path
    sources: Sequence[TableSource] = ()
    servers: tuple[str, int] | None = None
    resolve: Resolve | None = None
    tell: Callable[[str], None] = lambda _: None
    clock: Callable[[], float] = monotonic
    seen: Seen = field(default_factory=Seen)
    _choice: Choice = field(init=False)

    def __post_init__(self) -> None:
        self._choice = Choice(self.fleet.stale_after_s)

    async def round(self) -> None:
        """One round. It never fails: what goes wrong is told, and the next one tries again."""
        self.seen.begun_at = self.clock()
        problems: dict[str, str] = {}
        if self.sources:
            await self._follow_table(problems)
        if self.servers is not None:
            await self._follow_servers(problems)
        self._tell(problems)
        self.seen.rounds += 1

    async def _follow_table(self, problems: dict[str, str]) -> None:
        answers = await asyncio.gather(*(self._ask(source, problems) for source in self.sources))
        number = self._choice.choose(answers, self.clock())
        found = None if number is None else answers[number]
        if number is None or found is None:
            return
        try:
            row = edge_endpoints(self.fleet, self.region, self.fleet.places(), found.table)
            write_endpoints(self.folder / ENDPOINTS, row)
            share = found.delay_share[self.region]
            write_runtime(self.folder / RUNTIME, delay.runtime_values(share, self.fleet.retry.delay.max_s))
        except RoutingError as error:
            problems["files"] = str(error)
            return
        url = self.sources[number].url
        if self.seen.source and self.seen.source != url:
            self.tell(f"goes by the control loop at {url} now")
        self.seen.version, self.seen.source, self.seen.table_at = found.table.version, url, self.clock()

    async def _ask(self, source: TableSource, problems: dict[str, str]) -> Published | None:
        try:
            found = await source.ask()
        except RoutingError as error:
            problems[source.url] = str(error)
            return None
        if found.not_ready:
            problems[source.url] = f"{source.url} is not ready: {found.not_ready}"
        return found

    async def _follow_servers(self, problems: dict[str, str]) -> None:
        assert self.servers is not None
        assert self.resolve is not None
        name, port = self.servers
        try:
            found = await self.resolve(name, port)
            if not found:
                # Envoy asks each of those that it has every second, and needs nobody to tell it that they are gone.
                problems["servers"] = f"{name} stands for no GPU server that is ready; those in the files stay"
                return
            set_servers(self.folder, found)
        except RoutingError as error:
            problems["servers"] = str(error)
            return
        except OSError as error:  # the file of before cannot be read
            problems["servers"] = f"{error.filename}: {error.strerror}"
            return
        if found != self.seen.servers:
            before = set(self.seen.servers or ())
            self.tell(f"{len(found)} GPU servers: {len(set(found) - before)} new, {len(before - set(found))} gone")
        self.seen.servers, self.seen.servers_at = found, self.clock()

    def _tell(self, problems: dict[str, str]) -> None:
        # One line when it begins and one when it is over; what changes in between, as a number does, is no news.
        for about, text in problems.items():
            if about not in self.seen.problems:
                self.tell(text)
        for about in self.seen.problems.keys() - problems.keys():
            self.tell(f"{about}: well again")
        self.seen.problems = problems
