"""Tables of control loops: asking all of them, and choosing one to go by."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from ..control.published import Published
from ..errors import InputError, RoutingError
from ..fleet import Fleet

LARGEST = 16 * 2**20  # bytes; the table of a thousand regions has less than half of it


class TableSource:
    """Asks one control loop.

    Args:
        url: of it, such as `http://10.1.0.20:9900`.
        fleet: that its table must be of.
        limit_s: an answer that has not come by then is none.
        transport: of httpx, for tests.
    """

    def __init__(
        self, url: str, fleet: Fleet, limit_s: float, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._fleet, self._limit_s = fleet, limit_s
        self._client = httpx.AsyncClient(timeout=limit_s, trust_env=False, transport=transport)

    async def ask(self) -> Published:
        """What it publishes.

        Raises:
            RoutingError: it does not answer, or with something else.
        """
        try:
            async with asyncio.timeout(self._limit_s):
                answer = await self._client.get(f"{self.url}/published.json")
        except (TimeoutError, httpx.TimeoutException):
            raise RoutingError(f"{self.url} does not answer within {self._limit_s:g} s") from None
        except httpx.HTTPError as error:
            raise RoutingError(f"{self.url} does not answer ({str(error) or type(error).__name__})") from None
        if answer.status_code != httpx.codes.OK:
            raise RoutingError(f"{self.url} answers {answer.status_code}")
        if len(answer.content) > LARGEST:
            raise RoutingError(f"{self.url} answers with more than {LARGEST // 2**20} MiB")
        try:
            return Published.from_json(answer.text, self._fleet)
        except InputError as error:
            raise RoutingError(f"{self.url} publishes no table of this fleet: {error}") from None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


@dataclass
class Choice:
    """Which loop to go by: the first of the list that does its work.

    Two loops see the same and still decide a little differently, so that to change between them moves traffic for
    nothing. A loop is left when it has not done its work for `hold_s`, and one before it in the list is gone back to
    when it has for as long. While none does, nothing changes: the last table is as good as what a blind loop says.

    Attributes:
        hold_s: see above.
        current: number of the loop that is gone by; None: none has answered yet.
    """

    hold_s: float
    current: int | None = None
    _since: dict[int, tuple[bool, float]] = field(default_factory=dict)

    def choose(self, answers: Sequence[Published | None], now: float) -> int | None:
        """Number of the loop whose answer is to be used in this round, or None: none.

        Args:
            answers: of each loop; None where there was none.
            now: monotonic seconds.
        """
        works = [one is not None and not one.not_ready for one in answers]
        for i, well in enumerate(works):
            if i not in self._since or self._since[i][0] != well:
                self._since[i] = (well, now)
        if self.current is None:
            # To begin with, any table is better than the one that the pod was made with.
            answering = [i for i, one in enumerate(answers) if one is not None]
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
