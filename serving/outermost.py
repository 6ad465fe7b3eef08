"""What a request meets first, outside of all that BentoML puts around an application.

BentoML keeps a series of its metrics for each path that anyone asks for, and it and its tracing decode headers in ways
that fail on some bytes. So they see a copy of the request: with the path's template instead of the path, and with
headers in ASCII. The middleware behind them (`requested`) goes on with the request as it came.

The access log is written here, since BentoML's own would see the copy. It is in the form of BentoML's.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from .logs import ABOUT
from .paths import template_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("bentoml.access")

_ORIGINAL = "stillmotion.original"
_LOGGED_PATH = 500
# Asked for every few seconds, by programs.
_NOT_LOGGED = ("/metrics", "/healthz", "/livez", "/readyz")


def requested(scope: Scope) -> Scope:
    """Return the request as it came."""
    return {**scope, **scope.get(_ORIGINAL, {})}


class Outermost:
    """Stands between the server and the application.

    Args:
        app: the application, with everything of BentoML's around it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        original = {name: scope[name] for name in ("path", "headers")}
        shown = {
            "path": template_of(scope["path"]),
            "headers": [(name, _ascii(value)) for name, value in scope["headers"]],
            _ORIGINAL: original,
        }
        logged = send if scope["path"] in _NOT_LOGGED else _logging(scope, send)
        await self.app({**scope, **shown}, receive, logged)


def _ascii(value: bytes) -> bytes:
    return value if value.isascii() else value.decode("ascii", "backslashreplace").encode()


def _logging(scope: Scope, send: Send) -> Send:
    began = time.perf_counter()
    client = ":".join(map(str, scope["client"])) if scope.get("client") else "_"
    # As it came, in percent-encoding: no byte of it can act on a terminal.
    path = scope.get("raw_path", b"").decode("ascii", "backslashreplace")
    path = path if len(path) <= _LOGGED_PATH else f"{path[:_LOGGED_PATH]}..."
    kind, length = _type_and_length(scope["headers"])
    request = f"scheme={scope['scheme']},method={scope['method']},path={path},type={kind},length={length}"
    start: Message = {"status": 0, "headers": []}

    async def logging_send(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = message
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            milliseconds = 1000 * (time.perf_counter() - began)
            kind, length = _type_and_length(start["headers"])
            answer = f"status={start['status']},type={kind},length={length}"
            about = {"path": path, "status": start["status"], "duration_ms": round(milliseconds)}
            logger.info("%s (%s) (%s) %.3fms", client, request, answer, milliseconds, extra={ABOUT: about})

    return logging_send


def _type_and_length(headers: list[tuple[bytes, bytes]]) -> tuple[str, str]:
    found = dict(headers)
    kind, length = (_ascii(found.get(name, b"")).decode("ascii") for name in (b"content-type", b"content-length"))
    return kind, length
