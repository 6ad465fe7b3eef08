"""Control loops, as an agent asks them: for its row, by polls that wait until it changes; and choosing one to go by."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from ..control.rows import Row
from ..errors import InputError, RoutingError
from ..fleet import Fleet

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
