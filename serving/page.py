"""The page at `/ui`: static files, and what they need to know of the model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from pipeline.serve.request import fields_of

from .replies import unavailable_reply

if TYPE_CHECKING:
    import os

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Scope

    from .host import Host

_FOLDER = Path(__file__).parent / "ui"
# Nothing from elsewhere; blob: is the picture that was chosen and the video that came back.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class _Files(StaticFiles):
    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-cache"
        return response


def page(host: Host) -> Starlette:
    """The application to mount at `/ui`."""

    async def model(_: Request) -> Response:
        if not host.loaded:
            return unavailable_reply(host.state, f"the server is {host.state}", 2.0)
        info, settings = host.engine.info, host.settings
        about = {
            "model": host.engine.name,
            "region": settings.region,
            "teacher": info.teacher,
            "steps": info.steps,
            "passes": info.passes,
            "width": info.width,
            "height": info.height,
            "fields": [{**asdict(one), "label": one.label} for one in fields_of(info)],
            "max_image_bytes": settings.max_image_bytes,
            "max_prompt_chars": settings.max_prompt_chars,
        }
        return JSONResponse(about, headers={"Cache-Control": "no-store"})

    files = _Files(directory=_FOLDER)

    async def index(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    # Not `html=True`: it redirects from a folder to the host that the request names, whoever that is.
    return Starlette(routes=[Route("/model.json", model), Route("/", index), Mount("/", files)])
