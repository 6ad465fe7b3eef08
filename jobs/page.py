"""The page at `/ui` (pictures to videos, a queue, a history) and the view of the fleet: files, and what they show."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from .api import Api, guarded
from .dispatch import Dispatcher
from .errors import ApiError
from .limits import Limits
from .records import State
from .settings import Settings
from .store import Store

_FOLDER = Path(__file__).parent / "ui"
# Nothing from elsewhere; blob: is the picture that was chosen and the video that came back.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class _Files(StaticFiles):
    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_HEADERS)
        return response


class Fleet:
    """The control loop's own status, fetched at most every two seconds, however many look at it.

    Args:
        url: of its pages; None: there is no fleet.
    """

    def __init__(self, url: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._url, self._clock = url, clock
        self._client = httpx.AsyncClient(timeout=5, trust_env=False)
        self._lock = asyncio.Lock()
        self._at, self._status = -float("inf"), dict[str, Any]()

    async def close(self) -> None:
        await self._client.aclose()

    async def status(self) -> dict[str, Any]:
        """Return it.

        Raises:
            ApiError: there is no control loop, or it does not answer.
        """
        if self._url is None:
            raise ApiError(404, "no_fleet", "this service was told of no control loop (setting: control)")
        async with self._lock:
            if self._clock() - self._at > 2:
                try:
                    answer = await self._client.get(f"{self._url}/status.json")
                    found = answer.raise_for_status().json()
                except (httpx.HTTPError, ValueError) as error:
                    raise ApiError(503, "control_unreachable", "the control loop does not answer", None, 5) from error
                self._at, self._status = self._clock(), found
        return self._status


def routes(
    settings: Settings, store: Store, api: Api, limits: Limits, dispatcher: Dispatcher, fleet: Fleet
) -> list[BaseRoute]:
    """Return the routes of the page."""

    async def about(_: Request) -> Response:
        await limits.refresh()
        known, totals = limits.about, await asyncio.to_thread(store.totals)
        told = {
            "needs_key": bool(settings.keys),
            "state": dispatcher.state(reachable=limits.reachable),
            "queue": {
                state: sum(count for (which, _), count in totals.items() if which == state)
                for state in (State.QUEUED, State.IN_PROGRESS)
            },
            "fleet": settings.control is not None,
            "expires_s": settings.expires_s,
            "max_image_bytes": settings.max_image_bytes,
            "max_prompt_chars": limits.most_prompt_chars,
            **{name: known.get(name) for name in ("model", "steps", "passes", "width", "height")},
            "fields": known.get("fields", []),
        }
        return JSONResponse(told, headers={"Cache-Control": "no-store"})

    async def status(request: Request) -> Response:
        api.key(request)
        return JSONResponse(await fleet.status(), headers={"Cache-Control": "no-store"})

    files = _Files(directory=_FOLDER)

    def file(name: str) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            return await files.get_response(name, request.scope)

        return answer

    async def to_page(_: Request) -> Response:
        return RedirectResponse("ui/")

    return [
        Route("/", to_page),
        Route("/ui", to_page),
        Route("/ui/", file("index.html")),
        Route("/ui/fleet", file("fleet.html")),
        Route("/ui/about.json", guarded(about)),
        Route("/ui/fleet.json", guarded(status)),
        Mount("/ui", files),
    ]
