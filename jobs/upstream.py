"""One job, sent to a server or an edge as any client sends it: `POST /animate/stream`, and events until the video."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from .errors import JobsError

_MOST_WAIT_S = 60.0
# A comment comes every 10 seconds while a step computes.
_SILENCE_S = 120.0
_WRONG_S = 2.0
_ODD = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_MOST_EVENT = 512 * 2**20


class Refused(JobsError):  # not an error: the queue goes on
    """The upstream has no room now, or is not there, or something else stands in its place. Nothing was begun.

    Attributes:
        busy: whether it has no room; else it is not there.
        wait_s: until it is worth trying again.
    """

    def __init__(self, message: str, wait_s: float, *, busy: bool) -> None:
        super().__init__(message)
        self.wait_s, self.busy = wait_s, busy


class Lost(JobsError):
    """What was begun got lost with a server or a connection."""


class Failed(JobsError):
    """The job cannot be done, however often it is tried.

    Attributes:
        code, param: as the upstream said.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


@dataclass(frozen=True)
class Clip:
    """A finished video.

    Attributes:
        about: what is known of it: media_type, format, seed, steps, passes, compute_seconds, region, model.
    """

    data: bytes = field(repr=False)
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Event:
    """One of the events of a stream; `data` of a comment is empty."""

    name: str
    data: Mapping[str, Any]


class _Once(httpx.AsyncByteStream):
    """A body that is let go of as soon as it is sent: hundreds of jobs compute at a time, and none needs its picture.

    Args:
        body: it.
    """

    def __init__(self, body: httpx.AsyncByteStream) -> None:
        self._body: httpx.AsyncByteStream | None = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body, self._body = self._body, None
        assert body is not None, "it is sent once"
        async for chunk in body:
            yield chunk


class Upstream:
    """A server or an edge.

    Args:
        url: its address.
        key: sent as `X-API-Key`, which is what an edge takes; None: no key is needed.
        start_s: how long it may take to begin with a job.
        compute_s: how long it may compute, from then on.
    """

    def __init__(self, url: str, key: str | None, start_s: float, compute_s: float) -> None:
        self._start_s, self._compute_s = start_s, compute_s
        headers = {"X-API-Key": key} if key else {}
        # One connection a job; it is closed where the job is stopped, which tells the server to stop.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        timeout = httpx.Timeout(10, read=None, write=60, pool=None)
        self._client = httpx.AsyncClient(
            base_url=url, headers=headers, limits=limits, timeout=timeout, trust_env=False, follow_redirects=False
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def describe(self) -> dict[str, Any] | None:
        """Return what the server's page tells of its model (`/ui/model.json`).

        Empty where something answers that has no such page; None where nothing answers, or there is no server.
        """
        try:
            async with asyncio.timeout(5):
                answer = await self._client.get("/ui/model.json")
            found = answer.json() if answer.status_code == 200 else {}
        except (httpx.HTTPError, TimeoutError):
            return None
        except ValueError:
            return {}
        if answer.status_code in (502, 503, 504):
            return None
        return found if isinstance(found, dict) else {}

    async def animate(
        self,
        fields: Mapping[str, str],
        pictures: Mapping[str, bytes],
        headers: Mapping[str, str],
        on_start: Callable[[], None],
        on_step: Callable[[int, int], None],
    ) -> Clip:
        """Have a clip computed. To stop the computation, cancel this: it closes the connection.

        Args:
            fields, pictures: of the form.
            headers: beside those of the form.
            on_start: called when the computation has begun.
            on_step: called with the steps done and all steps.

        Raises:
            Refused: there is no room, or nobody there.
            Lost: the connection broke after the computation may have begun.
            Failed: the job cannot be done.
        """
        files = {name: ("picture", data) for name, data in pictures.items()}
        began: list[float] = []
        request = self._client.build_request("POST", "/animate/stream", data=fields, files=files, headers=headers)
        assert isinstance(request.stream, httpx.AsyncByteStream)
        request.stream = _Once(request.stream)
        del files, pictures
        try:
            async with asyncio.timeout(self._start_s) as limit:
                try:
                    response = await self._client.send(request, stream=True)
                except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                    where = self._client.base_url.netloc.decode()
                    raise Refused(f"nobody answers at {where}: {error}", 2.0, busy=False) from error
                except httpx.HTTPError as error:
                    raise Lost(f"the connection broke: {type(error).__name__} {error}") from error
                try:
                    if response.status_code != 200:
                        await _refuse(response)
                    kind = response.headers.get("Content-Type", "")[:80]
                    if not kind.startswith("text/event-stream"):
                        raise Refused(f"the upstream answers jobs with {kind!r}, no stream", _WRONG_S, busy=False)
                    return await self._follow(response, limit, began, on_start, on_step)
                finally:
                    # Also where this is cancelled: what has not been read to its end is closed, and not kept.
                    await response.aclose()
        except TimeoutError as error:
            raise self._too_late(began) from error

    def _too_late(self, began: Sequence[float]) -> JobsError:
        if not began:
            return Refused(f"the upstream did not begin with the job within {self._start_s:g} s", 1.0, busy=True)
        if asyncio.get_running_loop().time() < began[0] + self._compute_s:
            return Lost(f"nothing was heard of the computation for {_SILENCE_S:g} s")
        return Failed("deadline", f"not finished within {self._compute_s:g} s; the computation was stopped")

    async def _follow(
        self,
        response: httpx.Response,
        limit: asyncio.Timeout,
        began: list[float],
        on_start: Callable[[], None],
        on_step: Callable[[int, int], None],
    ) -> Clip:
        loop = asyncio.get_running_loop()
        try:
            async for event in events(response.aiter_raw()):
                if not began:
                    # The limit begins with the computation, and not while it waits.
                    began.append(loop.time())
                    on_start()
                limit.reschedule(min(began[0] + self._compute_s, loop.time() + _SILENCE_S))
                if event.name == "step":
                    on_step(int(event.data["step"]), int(event.data["steps"]))
                elif event.name == "error":
                    _fail(500, event.data)
                elif event.name == "result":
                    data = base64.b64decode(event.data["data"], validate=True)
                    if not data:
                        raise Lost("the upstream sent an empty video")
                    about = {name: _plain(value) for name, value in event.data.items() if name != "data"}
                    return Clip(data, about)
        except httpx.HTTPError as error:
            raise Lost(f"the connection broke: {type(error).__name__} {error}") from error
        except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise Lost(f"the upstream sent an event that cannot be read: {error}") from error
        raise Lost("the stream ended before the video")


async def _refuse(response: httpx.Response) -> None:
    """Raise what an answer other than 200 means."""
    status = response.status_code
    try:
        async with asyncio.timeout(30):
            body = (await response.aread())[:100_000]
    except (httpx.HTTPError, TimeoutError):
        body = b""
    if status in (429, 503):
        wait_s = _retry_after(response.headers.get("Retry-After"))
        raise Refused(f"the upstream answers {status}", wait_s, busy=status == 429)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = {}
    found = found if isinstance(found, dict) else {}
    # A key that is refused, a redirect, or a page that is not there says nothing of the job: the upstream is set up
    # wrongly, and jobs wait until it is not.
    if status in (401, 403, 404, 405, 407) or status < 400:
        raise Refused(f"the upstream answers {status} to jobs", _WRONG_S, busy=False)
    _fail(status, found)


def _fail(status: int, data: Mapping[str, Any]) -> None:
    """Raise what an error of the upstream means for the job."""
    code = str(_plain(data.get("code")) or f"upstream_{status}")
    message = str(_plain(data.get("error")) or f"answered {status}")
    name = _plain(data.get("field"))
    # `internal` is a server that failed at what another one may be able to do: it may have a GPU that is ill.
    again = code in ("draining", "stopped", "disconnected", "internal")
    if again or status in (502, 408) or (status >= 500 and not data):
        raise Lost(f"{message} ({code})")
    raise Failed(code, message, _OURS.get(str(name), str(name)) if name else None)


def _plain(value: Any) -> str | float | None:
    """Return a value that somebody else wrote as it can be kept, and shown to anybody."""
    if isinstance(value, str):
        return _ODD.sub("?", value)[:1000]
    return value if isinstance(value, int | float) and math.isfinite(value) else None


_OURS = {"image": "input_reference"}


def _retry_after(value: str | None) -> float:
    try:
        return min(_MOST_WAIT_S, max(0.1, float(value or 1)))
    except ValueError:
        return 1.0


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[Event]:
    """Read server-sent events; a comment is an event without a name.

    Raises:
        ValueError: an event is too long, or its data is no JSON.
    """
    held, looked = bytearray(), 0
    async for chunk in chunks:
        held += chunk
        while (end := held.find(b"\n\n", max(0, looked - 1))) >= 0:
            block = bytes(held[:end])
            del held[: end + 2]
            looked = 0
            name, data = "", b""
            for line in block.split(b"\n"):
                if line.startswith(b"event: "):
                    name = line[7:].decode()
                elif line.startswith(b"data: "):
                    data = line[6:]
            found = json.loads(data) if data else {}
            if not isinstance(found, dict):
                raise ValueError(f"the data of an event {name[:40]!r} is no object")  # noqa: TRY004  # as for what is no JSON
            yield Event(name, found)
        looked = len(held)
        if looked > _MOST_EVENT:
            raise ValueError(f"an event is over {_MOST_EVENT} bytes")
