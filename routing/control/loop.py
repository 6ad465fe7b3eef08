"""Rounds on this machine's clock: collect, decide, publish; and survive whatever happens in one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Protocol

from ..errors import RoutingError
from ..metrics.observation import Observation
from ..table import RoutingTable
from .controller import Controller
from .journal import Journal
from .publishing import Publisher
from .saved import Saved
from .state import ControlState, Decision

ASSURE_EVERY_S = 15.0
"""So often what is published is looked at, and mended where another hand has changed it."""


def wall_clock() -> datetime:
    """Time of day. It is written beside what happens, and decides nothing: it can be set."""
    return datetime.now(UTC)


class Collects(Protocol):
    """What the loop needs of a collector."""

    async def collect(self) -> Observation:
        """One round of metrics."""


@dataclass(frozen=True)
class Snapshot:
    """How things are after a round.

    Attributes:
        state, decision, observation: of the last round that succeeded; None before it.
        table: as published.
        rounds, failed, tables: how many there were.
        failure: of the last round; empty: it succeeded.
        well_at: monotonic seconds of the last round that succeeded.
        begun_at: of the last that began.
        took_s: how long the last one took.
    """

    table: RoutingTable
    state: ControlState
    decision: Decision | None = None
    observation: Observation | None = None
    rounds: int = 0
    failed: int = 0
    tables: int = 0
    failure: str = ""
    well_at: float | None = None
    begun_at: float | None = None
    took_s: float = 0.0


@dataclass
class Loop:
    """The control loop.

    Attributes:
        controller: makes the decisions.
        collector: takes the metrics.
        publisher: is told of what changes.
        journal: keeps what was decided.
        saved: the table to go on from.
        interval_s: from the start of one round to the start of the next.
        clock: seconds that never go back.
        wall: the time of day.
        watch: is given each snapshot.
    """

    controller: Controller
    collector: Collects
    publisher: Publisher
    journal: Journal
    saved: Saved
    interval_s: float
    clock: Callable[[], float] = monotonic
    wall: Callable[[], datetime] = wall_clock
    watch: Callable[[Snapshot], None] = lambda _: None
    snapshot: Snapshot = field(init=False)
    _delays: Mapping[str, float] = field(default_factory=dict)
    _ready: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _assured_at: float | None = None
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "publish"), repr=False)

    def __post_init__(self) -> None:
        table = self.saved.table
        self.snapshot = Snapshot(table, self.controller.start(table.shares))

    async def run(self, stop: asyncio.Event, rounds: int | None = None) -> Snapshot:
        """Go round until stopped.

        Args:
            stop: ends it, between two rounds at the latest.
            rounds: ends it too, after so many.

        Raises:
            RoutingError: not even the table to begin with can be published.
        """
        version = self.snapshot.table.version
        self.journal.note("started", self.saved.text, version=version, sound=self.saved.sound)
        resting = self.controller.policy.delay.share
        self._delays = dict.fromkeys(self.controller.fleet.names, resting)
        await self._assure(self.snapshot.table, self.clock())
        next_at = self.clock()
        while not stop.is_set():
            await self.round()
            if rounds is not None and self.snapshot.rounds >= rounds:
                break
            # Rounds that are late are left out, not made up for.
            next_at = max(next_at + self.interval_s, self.clock())
            try:
                async with asyncio.timeout(max(0.0, next_at - self.clock())):
                    await stop.wait()
            except TimeoutError:
                continue
        self.journal.note("stopped", f"table {self.snapshot.table.version} stays", version=self.snapshot.table.version)
        return self.snapshot

    async def round(self) -> None:
        """One round. What goes wrong in it is noted, and the next one tries again."""
        began = self.clock()
        before = self.snapshot
        self.snapshot = replace(before, begun_at=began)
        try:
            await self._round()
        except Exception as error:  # noqa: BLE001  # traffic hangs on the loop: it outlives every error
            text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            self.snapshot = replace(before, begun_at=began, failed=before.failed + 1, failure=text)
            self.journal.note("round_failed", text)
        self.snapshot = replace(self.snapshot, rounds=before.rounds + 1, took_s=self.clock() - began)
        self.watch(self.snapshot)

    async def _round(self) -> None:
        observation = await self.collector.collect()
        now = self.clock()  # the rates are as of now, not of when the question was asked
        before = self.snapshot
        state, decision = self.controller.step(before.state, observation, now)
        self.journal.round(state, decision, observation.oddities)
        after = replace(before, state=state, decision=decision, observation=observation, failure="", well_at=now)
        try:
            if decision.changes:
                after = await self._publish(after, decision)
            await self._set_live(observation, decision)
            await self._assure(after.table, now)
        except RoutingError as error:
            text = f"could not publish: {error}"
            after = replace(after, failure=text, failed=before.failed + 1)
            if after.table is before.table:
                # What was learnt is kept. What was decided is not in use, or not everywhere: it is decided again.
                after = replace(after, state=replace(state, rows=before.state.rows, moving=before.state.moving))
            self.journal.note("round_failed", text)
        self.snapshot = after

    async def _publish(self, after: Snapshot, decision: Decision) -> Snapshot:
        table = RoutingTable(
            version=after.table.version + 1,
            generated_at=self.wall(),
            shares=decision.rows,
            moves=decision.moves,
            unserved_rps=decision.unserved_rps,
        )
        await self._write(self.publisher.publish, table)
        self.journal.table(table, decision, after.state)
        return replace(after, table=table, tables=after.tables + 1)

    async def _write(self, write: Callable[..., Collection[str]], *arguments: Any) -> Collection[str]:
        # In a thread, since files of a hundred edges take a while and pages are to be answered meanwhile; in one of
        # its own, since asyncio's are taken while names of machines do not resolve.
        return await asyncio.get_running_loop().run_in_executor(self._writer, write, *arguments)

    async def _set_live(self, observation: Observation, decision: Decision) -> None:
        if decision.delays != self._delays:
            await self._write(self.publisher.set_delays, decision.delays)
            self._delays = decision.delays
        for region, seen in observation.regions.items():
            if seen.gpus_ready is not None and seen.ready_servers != self._ready.get(region):
                await self._write(self.publisher.set_ready, region, seen.ready_servers)
                self._ready[region] = seen.ready_servers

    async def _assure(self, table: RoutingTable, now: float) -> None:
        """See that what was published is there still, and is so at the start."""
        if self._assured_at is not None and now - self._assured_at < ASSURE_EVERY_S:
            return
        mended = list(await self._write(self.publisher.publish, table))
        mended += await self._write(self.publisher.set_delays, self._delays)
        for region, servers in self._ready.items():
            mended += await self._write(self.publisher.set_ready, region, servers)
        if mended and self._assured_at is not None:
            self.journal.note("mended", f"another hand has changed {', '.join(mended)}; written again", files=mended)
        self._assured_at = now
