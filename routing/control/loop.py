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
from .publishing import Publisher, Saved
from .rows import Row, Rows
from .state import ControlState, Decision, Orders, RoundTrips
from .switches import Switches

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

    @property
    def warming(self) -> bool:
        """Whether the loop has just started, and knows too little to be followed."""
        return not self.state.warm

    @property
    def not_ready(self) -> str:
        """Why the table does not follow the traffic now; empty: it does. What an operator has frozen is ready."""
        if self.failure or self.decision is None:
            return self.failure or "no round has ended yet"
        if self.decision.frozen and not self.decision.by_operator:
            return self.decision.frozen
        if self.warming:
            names = self.decision.warming
            return f"warming up: {', '.join(names[:5])}{' and others' * (len(names) > 5)} not watched for long enough"
        return ""


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
        switches: of operators; None: there are none.
        clock: seconds that never go back.
        wall: the time of day.
        watch: is given each snapshot.
        rows: what agents are given.
        round_trips: that agents have measured.
    """

    controller: Controller
    collector: Collects
    publisher: Publisher
    journal: Journal
    saved: Saved
    interval_s: float
    switches: Switches | None = None
    clock: Callable[[], float] = monotonic
    wall: Callable[[], datetime] = wall_clock
    watch: Callable[[Snapshot], None] = lambda _: None
    snapshot: Snapshot = field(init=False)
    _delays: Mapping[str, float] = field(default_factory=dict)
    rows: Rows = field(default_factory=Rows)
    round_trips: RoundTrips = field(init=False)
    _live: dict[str, Row] = field(default_factory=dict)
    _latest: dict[str, tuple[int, int]] = field(default_factory=dict)
    _published: tuple[RoutingTable, frozenset[str]] | None = None
    _assured_at: float | None = None
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "publish"), repr=False)

    def __post_init__(self) -> None:
        table = self.saved.table
        self.snapshot = Snapshot(table, self.controller.start(table.shares))
        self.round_trips = RoundTrips(self.controller.fleet.latency)
        self._delays = dict.fromkeys(self.controller.fleet.names, self.controller.fleet.retry.delay.share)
        self.update_rows()

    async def run(self, stop: asyncio.Event, rounds: int | None = None) -> Snapshot:
        """Go round until stopped.

        Args:
            stop: ends it, between two rounds at the latest.
            rounds: ends it too, after so many.

        Raises:
            RoutingError: not even the table to begin with can be published.
        """
        version = self.snapshot.table.version
        self.journal.note("started", self.saved.text, version=version, valid=self.saved.valid)
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
            self.snapshot = replace(self.snapshot, failed=before.failed + 1, failure=text)
            self.journal.note("round_failed", text)
        self.snapshot = replace(self.snapshot, rounds=before.rounds + 1, took_s=self.clock() - began)
        self.update_rows()
        self.watch(self.snapshot)

    def report(self, row: Row) -> None:
        """Take what an agent has in use. The loop goes on from it where it is later than all that this loop knows.

        So a loop that has lost its table moves traffic from where it is, in steps, and not from home.
        """
        table = self.saved.table if self.snapshot.warming else self.snapshot.table
        if row.order > max((table.epoch, table.version), self._latest.get(row.region, (0, 0))):
            self._live[row.region], self._latest[row.region] = row, row.order

    @property
    def orders(self) -> Orders:
        """What decisions take as given now."""
        state = self.switches.state if self.switches is not None else None
        frozen = "frozen by an operator" if state is not None and state.frozen else ""
        drained = frozenset(state.drained) if state is not None else frozenset()
        return Orders(frozen, drained, self.round_trips.used)

    def update_rows(self) -> None:
        """See that agents get what holds now, as after a round or a switch."""
        now, drained = self.snapshot, self.orders.drained
        self.rows.update(now.table, self._delays, drained, warming=now.warming, not_ready=now.not_ready)

    def _go_on_from(self, live: Mapping[str, Row]) -> None:
        """Take rows that are in use as this loop's own, with an epoch above theirs."""
        before = self.snapshot
        epoch = max(before.table.epoch, 1 + max(row.epoch for row in live.values()))
        version = max(before.table.version, *(row.version for row in live.values()))
        shares = {**before.table.shares, **{region: dict(row.shares) for region, row in live.items()}}
        table = RoutingTable(epoch=epoch, version=version, generated_at=self.wall(), shares=shares)
        state = replace(before.state, rows={source: dict(row) for source, row in shares.items()}, moving=frozenset())
        self.snapshot = replace(before, table=table, state=state)
        text = f"goes on from rows that agents have in use: {', '.join(sorted(live))}"
        self.journal.note("seeded", text, epoch=epoch, version=version, regions=sorted(live))

    async def _round(self) -> None:
        observation = await self.collector.collect()
        now = self.clock()  # the rates are as of now, not of when the question was asked
        if self._live:
            live, self._live = self._live, {}
            self._go_on_from(live)
        before, orders = self.snapshot, self.orders
        state, decision = self.controller.step(before.state, observation, now, orders)
        self.journal.round(state, decision, observation.problems)
        after = replace(before, state=state, decision=decision, observation=observation, failure="", well_at=now)
        try:
            if decision.changes:
                after = await self._publish(after, decision)
            await self._set_delays(decision)
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
            epoch=after.table.epoch,
            version=after.table.version + 1,
            generated_at=self.wall(),
            shares=decision.rows,
            moves=decision.moves,
            unserved_rps=decision.unserved_rps,
        )
        await self._put(table)
        self.journal.table(table, decision, after.state)
        return replace(after, table=table, tables=after.tables + 1)

    async def _write(self, write: Callable[..., Collection[str]], *arguments: Any) -> Collection[str]:
        # In a thread, since files of a hundred edges take a while and pages are to be answered meanwhile; in one of
        # its own, since asyncio's are taken while names of machines do not resolve.
        return await asyncio.get_running_loop().run_in_executor(self._writer, write, *arguments)

    async def _put(self, table: RoutingTable) -> Collection[str]:
        drained = self.orders.drained
        written = await self._write(self.publisher.publish, table, drained)
        self._published = (table, drained)
        return written

    async def _set_delays(self, decision: Decision) -> None:
        if decision.delays != self._delays:
            await self._write(self.publisher.set_delays, decision.delays)
            self._delays = decision.delays

    async def _assure(self, table: RoutingTable, now: float) -> None:
        """See that what was published is there still, and is so at the start."""
        new = self._published != (table, self.orders.drained)
        if not new and self._assured_at is not None and now - self._assured_at < ASSURE_EVERY_S:
            return
        mended = list(await self._put(table))
        mended += await self._write(self.publisher.set_delays, self._delays)
        if mended and not new:
            self.journal.note("mended", f"another hand has changed {', '.join(mended)}; written again", files=mended)
        self._assured_at = now
