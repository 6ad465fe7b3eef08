"""Copies of users' requests, which idle servers of both versions animate, so that the clips can be compared.

Edges copy a share of the jobs (`data_plane.shadow`), and wait for no answer. One copy at a time is given to the
candidate and then to the stable version, with the same seed, by the dispatchers' admin addresses: a dispatcher takes
it for a server that is idle, or refuses it at once. What has begun goes on: a server that gave it up would finish its
step, and refuse a user's job meanwhile. No user ever has the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

import aiohttp
from aiohttp import web

from ..data_plane import host_and_port
from ..errors import InputError
from ..jobs import Jobs
from .counters import Version
from .judge import Clips
from .probe import Look, ProbeError, look, look_at_stable, wrong_with

Outcome = Literal["alike", "wrong", "busy", "unusable"]
OUTCOMES: Mapping[Outcome, str] = {
    "alike": "nothing was wrong with the candidate's clip",
    "wrong": "something was, or there was none",
    "busy": "no server was idle, or another copy was under way",
    "unusable": "the stable version gave no clip, or a blank one",
}
PAIRS = "stillmotion_shadow_copies_total"
_SEEDS = 2**31
_AGAIN_S = 0.2


@dataclass(frozen=True)
class Field:
    """A field of a form.

    Attributes:
        content: of it.
        filename, content_type: of a file.
    """

    content: str | bytes
    filename: str | None = None
    content_type: str | None = None

    @classmethod
    def of(cls, value: object) -> Field:
        """Return a field that came, with a content that outlives its request."""
        if isinstance(value, web.FileField):
            return cls(value.file.read(), value.filename, value.content_type)
        return cls(str(value))


Form = Mapping[str, Field]


class Shadow:
    """Takes copies, and counts what becomes of them.

    Args:
        pages: the dispatchers' admin addresses, as URLs.
        jobs: of the service.
        limit_s: a clip that takes longer is none.
    """

    def __init__(self, pages: Sequence[str], jobs: Jobs, limit_s: float) -> None:
        self._pages, self._jobs, self._limit_s = [page.rstrip("/") for page in pages], jobs, limit_s
        self._counts: Counter[Outcome] = Counter()
        self._psnr_db, self._why = 0.0, ""
        self._task: asyncio.Task[None] | None = None

    def clips(self) -> Clips:
        """Return the comparison until now."""
        alike, wrong = self._counts["alike"], self._counts["wrong"]
        text = f"{self._psnr_db:.1f} dB from the stable version's on average" if alike else ""
        return Clips(alike + wrong, wrong, "; ".join(filter(None, [text, self._why and f"the last: {self._why}"])))

    def metrics(self) -> str:
        """Return the counters as Prometheus reads them."""
        lines = [f'{PAIRS}{{outcome="{one}"}} {self._counts[one]}' for one in OUTCOMES]
        return "\n".join([f"# TYPE {PAIRS} counter", *lines]) + "\n"

    @contextlib.contextmanager
    def listening(self, address: str) -> Iterator[Shadow]:
        """Take copies at an address, in a thread of its own.

        Raises:
            InputError: nobody can listen there.
        """
        loop, started = asyncio.new_event_loop(), threading.Event()
        problem: list[OSError] = []

        async def serve() -> None:
            app = web.Application(client_max_size=self._jobs.body_bytes)
            app.add_routes([web.post(path, self._take) for path in self._jobs.paths])
            app.add_routes([web.get("/metrics", self._page)])
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            try:
                await web.TCPSite(runner, *host_and_port(address), shutdown_timeout=0.1).start()
            except OSError as error:
                problem.append(error)
            started.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            if self._task is not None:
                self._task.cancel()
            await runner.cleanup()

        main = loop.create_task(serve())
        thread = threading.Thread(target=loop.run_until_complete, args=(main,), daemon=True)
        thread.start()
        started.wait()
        try:
            if problem:
                raise InputError(f"nobody can listen at {address} ({problem[0].strerror})", key="data_plane.shadow")
            yield self
        finally:
            loop.call_soon_threadsafe(main.cancel)
            thread.join()
            loop.close()

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(text=self.metrics())

    async def _take(self, request: web.Request) -> web.Response:
        if self._task is not None and not self._task.done():
            self._counts["busy"] += 1
            return web.Response(status=429)
        self._task = asyncio.current_task()  # no other one comes in while this one arrives
        form = {name: Field.of(value) for name, value in (await request.post()).items()}
        self._task = asyncio.create_task(self._compare(form))
        return web.Response(status=202)

    async def _compare(self, form: Form) -> None:
        """Have the first dispatcher with an idle candidate animate a copy, and then by the stable version."""
        seed = Field(str(random.randrange(_SEEDS)))  # noqa: S311  # no secret
        same = {"seed": seed, **form, "format": Field("gif")}
        timeout = aiohttp.ClientTimeout(total=self._limit_s)
        async with aiohttp.ClientSession(timeout=timeout, headers={"Connection": "close"}) as session:
            for page in self._pages:
                candidate = await self._ask(session, page, same, "candidate")
                if candidate is not None:
                    self._counts[await self._beside_stable(session, page, same, candidate)] += 1
                    return
        self._counts["busy"] += 1

    async def _beside_stable(
        self, session: aiohttp.ClientSession, page: str, form: Form, candidate: Look | str
    ) -> Outcome:
        """Have the stable version animate the same, once one of its servers is idle, and compare."""
        end = time.monotonic() + self._limit_s
        while (stable := await self._ask(session, page, form, "stable")) is None:
            if time.monotonic() > end:
                return "busy"
            await asyncio.sleep(_AGAIN_S)
        if not isinstance(stable, Look):
            return "unusable"
        if why := wrong_with(stable, candidate) if isinstance(candidate, Look) else candidate:
            self._why = why
            return "wrong"
        assert isinstance(candidate, Look)
        self._psnr_db += (stable.psnr_db(candidate) - self._psnr_db) / (self._counts["alike"] + 1)
        return "alike"

    async def _ask(self, session: aiohttp.ClientSession, page: str, form: Form, version: Version) -> Look | str | None:
        """Return a version's clip, or what came instead; None: no server is idle."""
        data = aiohttp.FormData()
        for name, value in form.items():
            data.add_field(name, value.content, filename=value.filename, content_type=value.content_type)
        headers = {"X-Stillmotion-Version": version, "X-Request-ID": f"shadow-{uuid.uuid4()}"}
        try:
            async with session.post(page + self._jobs.paths[0], data=data, headers=headers) as answer:
                if answer.status in {429, 503}:
                    return None
                content = await answer.read()
                if answer.status != HTTPStatus.OK:
                    return f"status {answer.status} for a user's request"
                return look_at_stable(content) if version == "stable" else look(content)
        except aiohttp.ClientError:  # the dispatcher itself, which refuses before it has read all
            return None
        except TimeoutError:
            return f"no answer to a user's request in {self._limit_s:g} s"
        except ProbeError as error:
            return str(error)
