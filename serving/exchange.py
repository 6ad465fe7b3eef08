"""What the middleware hands to the endpoints: an admitted request with its checked form and its picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from _bentoml_sdk.io_models import IODescriptor, IORootModel  # type: ignore[import-untyped]
from bentoml.validators import ContentType
from pydantic import Field, create_model

from pipeline.media.video import Format
from pipeline.serve.request import ALL_FIELDS
from pipeline.serve.request import Field as RequestField

from .tracing import NOT_TRACED, Trace

if TYPE_CHECKING:
    from starlette.requests import Request

    from .admission import Ticket
    from .host import Prepared

SCOPE_KEY = "stillmotion.exchange"


@dataclass
class Exchange:
    """One admitted request.

    Attributes:
        trace: of it.
        request_id: of it.
        outcome: status to count it under where that is not the response's: an event stream is 200
            from its first byte, however it ends.
        finished: whether its video is encoded; no deadline counts any more.
    """

    ticket: Ticket
    prepared: Prepared
    outcome: int | None = None
    finished: bool = False
    trace: Trace = NOT_TRACED
    request_id: str = ""


_TYPES: dict[str, Any] = {"integer": int, "number": float, "text": str, "choice": str}


def _annotated(one: RequestField) -> tuple[Any, Any]:
    """A field of a request as pydantic takes it."""
    kind = Annotated[Path, ContentType("image/*")] if one.kind == "file" else _TYPES[one.kind]
    if one.name == "format":
        return Format, Field(default=one.default, description=one.about)
    # Of the fields that some model requires, only the picture is required by all.
    if one.name == "image":
        return kind, Field(description=one.about)
    # BentoML knows no optional files.
    optional = kind if one.kind == "file" else kind | None
    return optional, Field(default=None, description=one.about)


class _FromForm(IODescriptor):  # type: ignore[misc]  # BentoML ships no types
    """Fields of a form for BentoML's schema and its clients. They are parsed by `serving.form`, not from here."""

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:  # noqa: ARG003
        return _Admitted(request.scope[SCOPE_KEY])


_FORM: dict[str, Any] = {one.name: _annotated(one) for one in ALL_FIELDS}
AnimateInput = create_model("AnimateInput", __base__=_FromForm, **_FORM)


class _Admitted:
    """BentoML calls an endpoint with one argument for each of its input's `model_fields`."""

    model_fields: ClassVar[tuple[str, ...]] = ("exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange


class VideoFile(IORootModel[Annotated[Path, ContentType("video/*")]]):  # type: ignore[misc]  # as above
    """A video, to BentoML's schema and its clients."""

    media_type = "video/mp4"


class Events(IORootModel[str]):  # type: ignore[misc]  # as above
    """Server-sent events, to BentoML's schema and its clients."""

    media_type = "text/event-stream"
