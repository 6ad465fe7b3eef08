"""Responses: videos with their headers, errors with one shape of body, and refusals with none."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from pipeline.errors import Cancelled, InputError, NotFiniteError

if TYPE_CHECKING:
    from .host import Video

# Ours, for logs and metrics only: the client has gone and reads nothing. nginx made the number known.
CLIENT_GONE = 499

_CANCELLED = {
    "deadline": (504, "the animation was not finished before the deadline"),
    "disconnected": (CLIENT_GONE, "the client has gone"),
}


def video_headers(video: Video, model: str, region: str) -> dict[str, str]:
    """How a video came about."""
    animation = video.animation
    truncated = animation.prompt_length.truncated
    return {
        "X-Stillmotion-Seed": str(animation.seed),
        "X-Stillmotion-Model": model,
        "X-Stillmotion-Steps": str(animation.steps),
        "X-Stillmotion-Passes": str(animation.passes),
        "X-Stillmotion-Compute-Seconds": f"{video.compute_s:.3f}",
        "X-Stillmotion-Region": region,
        **({"X-Stillmotion-Marks": ", ".join(video.marks)} if video.marks else {}),
        **({"X-Stillmotion-Prompt-Truncated": truncated} if truncated else {}),
    }


def video_reply(video: Video, model: str, region: str) -> Response:
    """The video's bytes. The seed in the name lets a person make the same one again."""
    name = f"animation-{video.animation.seed}.{video.format}"
    headers = {"Content-Disposition": f'inline; filename="{name}"', "Cache-Control": "no-store"}
    return Response(video.data, media_type=video.media_type, headers=headers | video_headers(video, model, region))


def error_reply(status: int, code: str, message: str, field: str | None = None) -> JSONResponse:
    """The one shape of an error: `error` for people, `code` for programs, `field` where there is one."""
    return JSONResponse({"error": message, "code": code, "field": field}, status_code=status)


def failure_reply(error: Exception, reason: str | None = None) -> JSONResponse:
    """What a person sees of an error. Those that are not meant for people stay in the server's log.

    Args:
        error: as raised.
        reason: of a cancelled computation, as its ticket has it.
    """
    if isinstance(error, InputError):
        return error_reply(error.status, error.code, str(error), error.field)
    if isinstance(error, Cancelled):
        status, message = _CANCELLED.get(reason or "", (503, "the animation was stopped"))
        return error_reply(status, reason or "stopped", message)
    if isinstance(error, NotFiniteError):
        return error_reply(500, "not_finite", str(error))
    return error_reply(500, "internal", "the server failed at this; its log says why")


def busy_reply(wait_s: float) -> Response:
    """429 without a body: a body, however small, costs proxies a connection on each of their retries.

    Nor does it say `Connection: close`: clients that are still sending would see a reset.
    """
    return Response(status_code=429, headers={"Retry-After": retry_after(wait_s)})


def unavailable_reply(code: str, message: str, wait_s: float) -> JSONResponse:
    """503: the server is loading or draining, so a proxy should look elsewhere."""
    reply = error_reply(503, code, message)
    reply.headers["Retry-After"] = retry_after(wait_s)
    return reply


def retry_after(wait_s: float) -> str:
    """Whole seconds (RFC 9110 section 10.2.3), rounded up, at least one."""
    return str(max(1, math.ceil(wait_s)))
