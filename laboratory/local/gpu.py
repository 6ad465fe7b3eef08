"""A stand-in for a GPU server: load at most one, the rest refused at once. What it computes is time."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from aiohttp import web
from pydantic import Field

from routing.errors import InputError
from routing.files import parse_json
from routing.jobs import Jobs
from routing.schema import Count, Number, Positive, Share, Strict, validated

from ..service_times import ServiceTimes
from .clips import CLIPS, Clip

NAME = "stand-in"
SERVER = f"stillmotion-{NAME}"
STEPS = 8  # of a job; one whose client has gone stops at the next, as in the real server
LARGEST_BODY = 16 * 2**20 + 20 * 1024  # bytes; as `serving/settings.py` takes by default
UPLOAD_S = 20.0

# A GIF of one white pixel: the least that programs take for a picture.
GIF = base64.b64decode("R0lGODlhAQABAIAAAP///wAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw==")

SUFFIX = ".ledger"


class Faults(Strict):
    """What is wrong with a stand-in now, for tests of everything around it.

    Attributes:
        ready: whether `/readyz` says so, and jobs are taken.
        slowness: factor of the time that jobs take.
        admission: jobs that are taken at once. They are computed one after the other all the same, so that above 1
            some wait at a server that seems to have taken them.
        failing: share of the jobs that end with an error (500).
        clip: what the animations show.
        clip_share: of them; the others are as they should be.
        down_s: the stand-in is gone for so long once, its connections cut; 0: it is not.
    """

    ready: bool = True
    slowness: Annotated[Positive, Field(le=1000)] = 1.0
    admission: Annotated[Count, Field(ge=1, le=100)] = 1
    failing: Share = 0.0
    clip: Clip = "moving"
    clip_share: Share = 1.0
    down_s: Annotated[Number, Field(le=3600)] = 0.0

    def changed(self, order: str) -> Faults:
        """Return the faults after an order, which is JSON; what it leaves out stays as it is, but for `down_s`.

        Raises:
            InputError: it cannot be used.
        """
        given = parse_json(order)
        content = given if isinstance(given, Mapping) else {"": given}
        return validated(Faults, {**self.model_dump(), "down_s": 0.0, **content})


class Ledger:
    """The lines of one stand-in: which requests it began and ended, so that it can be proved that none is done twice.

    It is written line by line: what a killed stand-in had begun stays known.

    Args:
        path: of the file, which is appended to; None: nothing is written.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = -1 if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def note(self, event: Literal["began", "ended", "cancelled"], request_id: str) -> None:
        """Add a line."""
        if self._file >= 0:
            os.write(self._file, f"{event} {request_id}\n".encode())


def read(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Event, request id and stand-in, of each line of each ledger in a folder."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        for line in path.read_text(encoding="utf-8").splitlines():
            event, _, request_id = line.partition(" ")
            yield event, request_id, path.name.removesuffix(SUFFIX)


def computations(folder: Path) -> Counter[str]:
    """How often each request was begun to be computed."""
    return Counter(request_id for event, request_id, _ in read(folder) if event == "began")


@dataclass
class StandIn:
    """One stand-in.

    Attributes:
        gpu: its name, such as `us-east-1`.
        region: where it says it stands.
        times: of jobs.
        generator: that times are drawn from.
        ledger: notes each computation.
        jobs: paths that take jobs, and the one that says whether it is ready. One that ends with `stream` sends events.
        faults: what is wrong with it.
        model: what its answers call the model.
    """

    gpu: str
    region: str
    times: ServiceTimes
    generator: random.Random
    ledger: Ledger
    jobs: Jobs = field(default_factory=Jobs)
    faults: Faults = field(default_factory=Faults)
    model: str = NAME
    draining: bool = False
    down_s: float = 0.0
    requests: Counter[str] = field(default_factory=Counter)
    _taken: int = 0
    _slot: asyncio.Lock = field(default_factory=asyncio.Lock)
    _busy_since: float | None = None
    _busy_s: float = 0.0
    _ends_at: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether the slot is taken."""
        return self._taken > 0

    @property
    def ready(self) -> bool:
        """Whether it takes jobs, now or when it is done with one."""
        return self.faults.ready and not self.draining

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The response to any request; it is cancelled when the client goes away."""
        if request.path in self.jobs.paths and request.method == "POST":
            return await self._job(request)
        if request.path == "/standin" or request.path.startswith("/standin/"):
            return await self._admin(request)
        if request.method not in {"GET", "HEAD"}:
            return _error(405, "method", f"jobs are taken by POST {self.jobs.paths[0]}")
        if request.path in {self.jobs.ready, "/readyz"}:
            return _text(200 if self.ready else 503, "")
        match request.path:
            case "/livez" | "/healthz":
                return _text(200, "")
            case "/":
                return _text(200, f"{NAME} {self.gpu}: takes time as a GPU server does, and computes nothing\n")
            case "/docs.json":
                paths: dict[str, object] = {path: {"post": {}} for path in self.jobs.paths}
                return _json(200, {"info": {"title": f"stillmotion ({NAME})"}, "paths": paths})
        return _error(404, "not_found", "there is nothing here")

    def obey(self, faults: Faults) -> None:
        """Let something go wrong, or be well again."""
        self.faults, self.down_s = faults, faults.down_s

    def describe(self) -> dict[str, object]:
        """How it is."""
        return {
            "kind": NAME,
            "model": self.model,
            "gpu": self.gpu,
            "region": self.region,
            "service_time": self.times.text,
            "busy": self.busy,
            "busy_s": self._count(),
            "ready": self.ready,
            "requests": dict(self.requests),
            "faults": self.faults.model_dump(exclude={"down_s"}),
        }

    async def _job(self, request: web.BaseRequest) -> web.StreamResponse:
        response, outcome = await self._admitted(request)
        self.requests[outcome] += 1
        return response

    async def _admitted(self, request: web.BaseRequest) -> tuple[web.StreamResponse, str]:
        """The response, and the outcome that is counted."""
        if not self.ready:
            response = _error(503, "draining" if self.draining else "loading", f"the {NAME} takes no jobs now")
            response.headers["Retry-After"] = "5"
            return response, "unavailable"
        if self._taken >= self.faults.admission:
            left_s = max(1, round(self._ends_at - time.monotonic() + 0.5))
            return _whole(429, b"", {"Retry-After": str(left_s)}), "busy"
        self._taken += 1
        try:
            await self._slot.acquire()  # at once, unless it was told to take more than one
        except BaseException:
            self._taken -= 1
            raise
        self._busy_since = time.monotonic()
        try:
            seconds = self.times.draw(self.generator) * self.faults.slowness
            self._ends_at = self._busy_since + seconds
            if (refusal := await _upload(request, any_form=self.jobs.paths != Jobs().paths)) is not None:
                return refusal, "slow_upload" if refusal.status == 408 else "bad_input"
            request_id = request.headers.get("x-request-id", "without-id")
            if request.path.endswith("/stream"):
                return await self._events(request, seconds, request_id)
            if not await self._compute(seconds, request_id):
                return _error(503, "disconnected", "the client has gone"), "disconnected"
            if self.generator.random() < self.faults.failing:
                return _error(500, "failed", f"the {NAME} was told to fail"), "failed"
        finally:
            self._free()
        about = {"Content-Disposition": 'inline; filename="animation.gif"', "X-Stillmotion-Seed": str(seed_of(request))}
        headers = {**about, **self._about(), "X-Stillmotion-Compute-Seconds": f"{seconds:.3f}"}
        return _whole(200, self._clip(), {"Content-Type": "image/gif", **headers}), "ok"

    async def _compute(self, seconds: float, request_id: str) -> bool:
        """Take the time; whether somebody waited for the end of it."""
        self.ledger.note("began", request_id)
        began = time.monotonic()
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            left_s = max(0.0, began + seconds - time.monotonic())
            await asyncio.sleep(left_s % (seconds / STEPS))
            self.ledger.note("cancelled", request_id)
            return False
        self.ledger.note("ended", request_id)
        return True

    async def _events(
        self, request: web.BaseRequest, seconds: float, request_id: str
    ) -> tuple[web.StreamResponse, str]:
        headers = {"Server": SERVER, "Content-Type": "text/event-stream", **self._about()}
        stream = web.StreamResponse(headers=headers)
        try:
            await stream.prepare(request)
            await stream.write(_event("start", {"steps": STEPS, "model": self.model, "left_s": round(seconds, 2)}))
            self.ledger.note("began", request_id)
            for step in range(1, STEPS + 1):
                await asyncio.sleep(seconds / STEPS)
                left_s = round(seconds * (1 - step / STEPS), 2)
                await stream.write(_event("step", {"step": step, "steps": STEPS, "left_s": left_s}))
        except (asyncio.CancelledError, ConnectionError):
            self.ledger.note("cancelled", request_id)
            return stream, "disconnected"
        self.ledger.note("ended", request_id)
        data = base64.b64encode(self._clip()).decode("ascii")
        result = {"format": "gif", "media_type": "image/gif", "data": data, "gpu": self.gpu}
        with contextlib.suppress(ConnectionError):
            await stream.write(_event("result", result))
        return stream, "ok"

    def _clip(self) -> bytes:
        faults = self.faults
        wrong = faults.clip != "moving" and self.generator.random() < faults.clip_share
        return CLIPS[faults.clip if wrong else "moving"]

    def _free(self) -> None:
        self._count()
        self._busy_since = None
        self._taken -= 1
        self._slot.release()

    def _count(self) -> float:
        """Busy seconds until now."""
        if self._busy_since is not None:
            now = time.monotonic()
            self._busy_s += now - self._busy_since
            self._busy_since = now
        return self._busy_s

    def _about(self) -> dict[str, str]:
        return {
            "Cache-Control": "no-store",
            "X-Stillmotion-Model": self.model,
            "X-Stillmotion-Steps": str(STEPS),
            "X-Stillmotion-Passes": str(STEPS),
            "X-Stillmotion-Region": self.region,
            "X-Stillmotion-Gpu": self.gpu,
        }

    async def _admin(self, request: web.BaseRequest) -> web.Response:
        # For whoever is on this machine and speaks to it directly. What proxies pass on has this header.
        if not (request.remote or "").startswith("127.") or "x-forwarded-for" in request.headers:
            return _error(404, "not_found", "there is nothing here")
        if request.path == "/standin/faults" and request.method == "POST":
            try:
                self.obey(self.faults.changed((await request.read()).decode(errors="replace")))
            except (InputError, web.HTTPRequestEntityTooLarge) as error:
                return _error(400, "faults", str(error))
        elif request.path != "/standin":
            return _error(404, "not_found", "there are /standin and /standin/faults")
        return _json(200, self.describe())


def seed_of(request: web.BaseRequest) -> int:
    """A seed for an answer: any will do, since nothing is drawn."""
    return sum(request.headers.get("x-request-id", "").encode()) % 2**31


async def _upload(request: web.BaseRequest, *, any_form: bool) -> web.Response | None:
    """Read the upload and let it go; what is wrong with it, or None. Another service takes any form."""
    if not (request.content_type == "multipart/form-data" or any_form):
        return _error(415, "not_multipart", "send multipart/form-data with the fields image and prompt")
    if request.headers.get("expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    size = 0
    try:
        async with asyncio.timeout(UPLOAD_S):
            async for part in request.content.iter_any():
                size += len(part)
                if size > LARGEST_BODY:
                    return _error(413, "too_large", f"over the limit of {LARGEST_BODY} bytes", close=True)
    except TimeoutError:
        return _error(408, "slow_upload", f"the request did not arrive within {UPLOAD_S:g} seconds", close=True)
    return None


def _whole(status: int, body: bytes, headers: Mapping[str, str]) -> web.Response:
    return web.Response(status=status, body=body, headers={"Server": SERVER, **headers})


def _error(status: int, code: str, message: str, *, close: bool = False) -> web.Response:
    response = _json(status, {"error": message, "code": code, "field": None})
    if close:
        response.force_close()
    return response


def _json(status: int, content: object) -> web.Response:
    return _whole(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


def _text(status: int, text: str) -> web.Response:
    return _whole(status, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})


def _event(name: str, data: Mapping[str, object]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
