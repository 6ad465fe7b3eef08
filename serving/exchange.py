"""What the middleware hands to the endpoints: an admitted request with its checked form and its picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from _bentoml_sdk.io_models import IODescriptor, IORootModel  # type: ignore[import-untyped]
from bentoml.validators import ContentType
from pydantic import Field

from pipeline.media.video import Format

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


class AnimateInput(IODescriptor):  # type: ignore[misc]  # BentoML ships no types
    """The form's fields, for BentoML's schema and its clients. Parsed by `serving.form`, not from here."""

    image: Annotated[Path, ContentType("image/*")] = Field(description="PNG, JPEG or WebP")
    prompt: str = Field(description="What should move, and how")
    seed: int | None = Field(default=None, description="Left out: drawn at random")
    frames: int | None = Field(default=None, description="Left out: the model's")
    fps: int | None = Field(default=None, description="Frames per second; left out: the model's")
    motion_scale: int | None = Field(default=None, description="Amount of motion, where the model has this control")
    guidance_scale: float | None = Field(
        default=None, description="Weight of the prompt, where the model has this control"
    )
    format: Format = Field(default="mp4", description="Of the file")

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:  # noqa: ARG003
        return _Admitted(request.scope[SCOPE_KEY])


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
