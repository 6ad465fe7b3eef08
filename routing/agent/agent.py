"""The agent: it takes a row, writes it, and tells loops what they cannot know. What it cannot learn stays as it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from time import monotonic

import httpx

from ..control.rows import Row
from ..data_plane import host_and_port
from ..envoy.edge import delay_values, edge_endpoints
from ..envoy.files import ENDPOINTS, RUNTIME, write_endpoints, write_runtime
from ..errors import InputError, RoutingError
from ..files import read_text, write_atomically
from ..fleet import Fleet
from ..table import RoutingTable

KEPT = "row.json"
"""In the edge's folder: the row in use, which outlives the agent."""
AGAIN_S = 1.0
"""Time until a loop that did not answer is asked again, and until loops are chosen anew without news."""
MEASURE_EVERY_S = 60.0
_CONNECTS = 3
_CONNECT_LIMIT_S = 2.0
_AT_ONCE = 10
_NO_TIME = datetime.fromtimestamp(0, UTC)


@dataclass
class Seen:
    """How an agent stands.

    Attributes:
        asked: whether each loop was asked once, with an answer or without.
        row: in the files; None: still the one that they were made with.
        source: URL of the control loop that it is from.
        heard_at: monotonic seconds at which that loop was last heard.
        looked_at: of the last choice of a loop.
        problems: what is wrong now, by what it is about.
    """

    asked: bool = False
    row: Row | None = None
    source: str = ""
    heard_at: float | None = None
    looked_at: float | None = None
    problems: dict[str, str] = field(default_factory=dict)


@dataclass
class Agent:
    """Keeps the files of one edge.

    Attributes:
        fleet: that the edge belongs to.
        region: where it is.
        folder: of its files.
        loops: control loops, the preferred first.
        tell: takes lines for people.
        clock: seconds that never go back.
    """

    fleet: Fleet
    region: str
    folder: Path
    loops: Sequence[ControlLoop]
    tell: Callable[[str], None] = lambda _: None
    clock: Callable[[], float] = monotonic
    seen: Seen = field(default_factory=Seen)
    _choice: Choice = field(init=False)
    _answers: list[Row | None] = field(init=False)
    _heard_at: dict[int, float] = field(default_factory=dict)
    _written: tuple[Row, str] | None = None

    def __post_init__(self) -> None:
        self._choice = Choice(self.fleet.stale_after_s)
        self._answers = [None] * len(self.loops)
        self._recall()

    async def once(self) -> None:
        """Ask each loop once, and write what is chosen."""
        await asyncio.gather(*(self._ask(i, wait=False) for i in range(len(self.loops))))
        self.look()

    async def run(self, stop: asyncio.Event) -> None:
        """Go by the loops until stopped."""
        await self.once()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._follow(i)) for i in range(len(self.loops))]
            tasks.append(group.create_task(self._measure()))
            while not stop.is_set():
                self.look()
                try:
                    async with asyncio.timeout(AGAIN_S):
                        await stop.wait()
                except TimeoutError:
                    continue
            for task in tasks:
                task.cancel()

    def look(self) -> None:
        """Choose a loop by its newest answer, and write its row. It never fails: what goes wrong is told."""
        self.seen.looked_at, self.seen.asked = self.clock(), True
        number = self._choice.choose(self._answers, self.clock())
        row = None if number is None else self._answers[number]
        if number is None or row is None:
            return
        self.seen.heard_at = self._heard_at[number]
        url = self.loops[number].url
        if self._written == (row, url):
            return
        try:
            self._write(row, url)
        except RoutingError as error:
            self._problem("files", str(error))
            return
        self._well("files")
        if self.seen.source and self.seen.source != url:
            self.tell(f"goes by the control loop at {url} now")
        self.seen.row, self.seen.source = row, url
        self._written = (row, url)

    def _write(self, row: Row, url: str) -> None:
        table = RoutingTable(generated_at=_NO_TIME, shares={self.region: row.shares})
        fleet = self.fleet.avoiding(row.drained)
        write_endpoints(self.folder / ENDPOINTS, edge_endpoints(fleet, self.region, fleet.places(), table))
        write_runtime(self.folder / RUNTIME, delay_values(row.delay_share, fleet.retry.delay.max_s))
        write_atomically(self.folder / KEPT, f"{url}\n{row.to_json()}\n")

    def _recall(self) -> None:
        """Know the row that an agent before this one has written."""
        path = self.folder / KEPT
        if not path.exists():
            return
        try:
            url, _, text = read_text(path).partition("\n")
            row = Row.from_json(text, self.fleet, self.region)
        except InputError:
            return  # of another fleet, or spoilt: the files are still there, and a loop's row will be soon
        self.seen.row, self.seen.source = row, url
        for loop in self.loops:
            if loop.url == url:
                loop.latest = row

    async def _follow(self, i: int) -> None:
        while True:
            if await self._ask(i, wait=True):
                self.look()
            else:
                await asyncio.sleep(AGAIN_S)

    async def _ask(self, i: int, *, wait: bool) -> bool:
        """Take a loop's newest row; whether it answered."""
        loop = self.loops[i]
        try:
            row = await loop.poll(wait=wait)
            if row is not None:
                self._answers[i] = await self._judge(loop, row)
            self._heard_at[i] = self.clock()
        except RoutingError as error:
            self._answers[i] = None
            self._problem(loop.url, str(error))
            return False
        answer = self._answers[i]
        if answer is not None and answer.not_ready:
            self._problem(loop.url, f"{loop.url} is not ready: {answer.not_ready}")
        elif answer is not None:
            self._well(loop.url)
        return True

    async def _judge(self, loop: ControlLoop, row: Row) -> Row | None:
        """The row, if it is not before one that this loop gave. A loop that has lost its table is told what is live."""
        latest = loop.latest
        if latest is not None and row.order < latest.order:
            self._problem(loop.url, f"{loop.url} goes back from table {latest.order} to {row.order}; it is told")
            await loop.report(latest)
            return None
        if row.warming and self.seen.row is not None:
            await loop.report(self.seen.row)
        if not row.warming:
            loop.latest = row
        return row

    async def _measure(self) -> None:
        """Measure round trips to other regions now and then, and report them."""
        while True:
            measured = await measure_round_trips(self.fleet, self.region)
            for loop in self.loops if measured else ():
                try:
                    await loop.report_round_trips(measured)
                except RoutingError as error:
                    self._problem(f"round trips, {loop.url}", str(error))
                else:
                    self._well(f"round trips, {loop.url}")
            await asyncio.sleep(MEASURE_EVERY_S)

    # One line when something begins and one when it is over; what changes in between, as a number does, is no news.

    def _problem(self, about: str, text: str) -> None:
        if about not in self.seen.problems:
            self.tell(text)
        self.seen.problems[about] = text

    def _well(self, about: str) -> None:
        if self.seen.problems.pop(about, None) is not None:
            self.tell(f"{about}: well again")


async def measure_round_trips(fleet: Fleet, region: str) -> dict[str, float]:
    """Return round trips to other regions in ms: the shortest of some connections to a dispatcher of each.

    Regions that cannot be reached are left out, and those on this machine, whose latency is emulated.
    """
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(name: str, address: str) -> tuple[str, float | None]:
        host, port = host_and_port(address)
        taken: list[float] = []
        async with turns:
            for _ in range(_CONNECTS):
                began = monotonic()
                try:
                    async with asyncio.timeout(_CONNECT_LIMIT_S):
                        _, writer = await asyncio.open_connection(host, port)
                except (OSError, TimeoutError):
                    break
                taken.append(1000 * (monotonic() - began))
                writer.close()
        return name, min(taken, default=None)

    places = fleet.places()
    asked = [
        one(name, places[name].dispatchers[0].address)
        for name in fleet.names
        if name != region and name in places and places[name].dispatchers
        if not ip_address(host_and_port(places[name].dispatchers[0].address)[0]).is_loopback
    ]
    found = await asyncio.gather(*asked)
    return {name: round(ms, 2) for name, ms in found if ms is not None and ms > 0}


LARGEST = 2**20
"""Bytes of an answer; the row of a thousand regions has 40 KB."""


class ControlLoop:
    """Asks one control loop.

    Args:
        url: of it, such as `http://10.1.0.20:9900`.
        fleet: that its rows must be of.
        region: whose row is asked for.
        wait_s: a poll is answered by then, changed or not.
        token: that reports show, or None.
        transport: of httpx, for tests.

    Attributes:
        latest: the latest row that it gave; one before it is not taken.
    """

    def __init__(
        self,
        url: str,
        fleet: Fleet,
        region: str,
        wait_s: float,
        token: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.latest: Row | None = None
        self._fleet, self._region, self._wait_s, self._tag = fleet, region, wait_s, ""
        self._limit_s = fleet.metrics.time_limit_s
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._client = httpx.AsyncClient(trust_env=False, transport=transport, headers=headers)

    async def poll(self, *, wait: bool = True) -> Row | None:
        """Ask for the row; None: it is the same as before.

        Args:
            wait: until it changes.

        Raises:
            RoutingError: there is no answer, or one that cannot be used.
        """
        wait_s = self._wait_s if wait and self._tag else 0.0
        parameters = {"after": self._tag, "wait": f"{wait_s:g}"}
        answer = await self._ask("GET", f"/rows/{self._region}", wait_s, params=parameters)
        if answer.status_code == httpx.codes.NOT_MODIFIED:
            return None
        if answer.status_code != httpx.codes.OK:
            raise RoutingError(f"{self.url} answers {answer.status_code}: {answer.text.strip()[:200]}")
        if len(answer.content) > LARGEST:
            raise RoutingError(f"{self.url} answers with more than {LARGEST // 2**20} MiB")
        try:
            row = Row.from_json(answer.text, self._fleet, self._region)
        except InputError as error:
            raise RoutingError(f"{self.url} gives no row of this fleet: {error}") from None
        self._tag = answer.headers.get("etag", "").strip('"')
        return row

    async def report(self, row: Row) -> None:
        """Tell it the row that is in use here.

        Raises:
            RoutingError: it does not take it.
        """
        await self._put(f"/rows/{self._region}", row.to_json())

    async def report_round_trips(self, measured_ms: Mapping[str, float]) -> None:
        """Tell it round trips from here to other regions.

        Raises:
            RoutingError: it does not take them.
        """
        await self._put(f"/round-trips/{self._region}", json.dumps(dict(measured_ms)))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _put(self, path: str, content: str) -> None:
        answer = await self._ask("PUT", path, 0.0, content=content)
        if not answer.is_success:
            raise RoutingError(f"{self.url} takes no report: {answer.text.strip()[:200] or answer.status_code}")

    async def _ask(self, method: str, path: str, wait_s: float, **more: object) -> httpx.Response:
        limit_s = wait_s + self._limit_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._client.request(method, self.url + path, timeout=limit_s, **more)  # type: ignore[arg-type]
        except (TimeoutError, httpx.TimeoutException):
            raise RoutingError(f"{self.url} does not answer within {limit_s:g} s") from None
        except httpx.HTTPError as error:
            raise RoutingError(f"{self.url} does not answer ({str(error) or type(error).__name__})") from None


@dataclass
class Choice:
    """Which loop to go by: the first of the list that does its work.

    Two loops see the same and still decide a little differently, so that to change between them moves traffic for
    nothing. A loop is left when it has not done its work for `hold_s`, and one before it in the list is gone back to
    when it has for as long. While none does, nothing changes: the last row is as good as what a blind loop says.

    Attributes:
        hold_s: see above.
        current: number of the loop that is gone by; None: none has answered yet.
    """

    hold_s: float
    current: int | None = None
    _since: dict[int, tuple[bool, float]] = field(default_factory=dict)

    def choose(self, answers: Sequence[Row | None], now: float) -> int | None:
        """Number of the loop whose answer is to be used now, or None: none.

        Args:
            answers: the newest of each loop; None where it does not answer.
            now: monotonic seconds.
        """
        works = [one is not None and not one.not_ready for one in answers]
        for i, well in enumerate(works):
            if i not in self._since or self._since[i][0] != well:
                self._since[i] = (well, now)
        if self.current is None:
            # To begin with, a frozen table is better than the one that the pod was made with; a new loop's is not.
            answering = [i for i, one in enumerate(answers) if one is not None and not one.warming]
            self.current = next((i for i in answering if works[i]), next(iter(answering), None))
            return self.current
        steady = [i for i, well in enumerate(works) if well and self._held(i, now)]
        if works[self.current]:
            self.current = min([self.current, *steady])
        elif steady and self._held(self.current, now):
            self.current = steady[0]
        return self.current if works[self.current] else None

    def _held(self, i: int, now: float) -> bool:
        return now - self._since[i][1] >= self.hold_s
