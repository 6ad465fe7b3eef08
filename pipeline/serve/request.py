"""What a request may hold, written once: the form, the API's description, the page and the command line follow it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..errors import InputError
from ..media.video import FORMATS
from ..model.controls import KNOWN_CONTROLS, Control
from .manifest import ModelInfo, Size

MOST_SEED = 2**32 - 1
MOST_FPS = 60

Kind = Literal["file", "text", "integer", "number", "choice"]


@dataclass(frozen=True)
class Field:
    """One field of a request.

    Attributes:
        name: in the form, the API and, with dashes, on the command line.
        kind: what its value is.
        about: what it does, for people.
        required: whether a request has to have it.
        least, most: limits of a number, both allowed; None: none that is known without a model.
        step: k where a number has to be k * n + 1.
        default: what the model takes where a request says nothing; None: it is drawn, or there is none.
        choices: values of a choice.
    """

    name: str
    kind: Kind
    about: str
    required: bool = False
    least: float | None = None
    most: float | None = None
    step: int = 1
    default: float | str | None = None
    choices: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name as a page shows it."""
        return "Frames per second" if self.name == "fps" else self.name.replace("_", " ").capitalize()


_COMMON = (
    Field("image", "file", "The picture that the clip begins with: PNG, JPEG or WebP", required=True),
    Field("prompt", "text", "What moves, and how", required=True),
    Field("negative_prompt", "text", "What the clip should not show"),
    Field("last_image", "file", "The picture that the clip ends with"),
    Field("seed", "integer", "The same seed gives the same clip; left out: drawn", least=0, most=MOST_SEED),
    Field("frames", "integer", "Frames of the clip", least=1),
    Field("fps", "integer", "Frames per second of the file", least=1, most=MOST_FPS),
    Field("size", "choice", "Width x height in pixels; left out: what is nearest to the picture's shape"),
    Field("steps", "integer", "Steps of the solver: more take longer", least=1),
    Field("guidance_scale", "number", "How much the prompt counts", least=0, most=100),
    Field("format", "choice", "Format of the file", default="mp4", choices=FORMATS),
)


def _control(name: str, control: Control | None = None) -> Field:
    if control is None:
        return Field(name, "number", "Control of some families")
    kind: Kind = "integer" if control.whole else "number"
    return Field(name, kind, control.about, least=control.least, most=control.most, default=control.default)


ALL_FIELDS = (*_COMMON, *(_control(name) for name in KNOWN_CONTROLS))
"""Fields that some model takes."""


def fields_of(info: ModelInfo) -> tuple[Field, ...]:
    """Return the fields that a request to this model may have, with its limits and defaults."""
    sizes = tuple(size_text(size) for size in info.sizes)
    limits: dict[str, dict[str, Any]] = {
        "frames": {
            "least": info.least_frames,
            "most": info.most_frames,
            "step": info.frame_step,
            "default": info.frames,
        },
        "fps": {"default": info.fps},
        "size": {"choices": sizes, "default": sizes[0] if len(sizes) == 1 else None},
        "steps": {"most": info.most_steps, "default": info.steps},
    }
    has = {
        "prompt": info.takes_prompt,
        "negative_prompt": info.takes_negative_prompt,
        "last_image": info.takes_last_image,
        "size": len(sizes) > 1,
        "steps": info.most_steps is not None,
        "guidance_scale": False,  # one of the controls, where there is a choice
    }
    if info.needs_last_image:
        limits["last_image"] = {"required": True}
    common = (replace(one, **limits.get(one.name, {})) for one in _COMMON if has.get(one.name, True))
    controls = (_control(name, control) for name, control in info.controls.items())
    return (*common, *controls)


def size_text(size: Size) -> str:
    """Return a size as people write it: width x height."""
    return f"{size[1]}x{size[0]}"


@dataclass(frozen=True)
class AnimationRequest:
    """What to make of a picture. None takes the model's own value; a seed left out is drawn.

    Attributes:
        size: width x height in pixels, as "832x480".
        controls: values of the model's controls, by name.
    """

    prompt: str = ""
    seed: int | None = None
    frames: int | None = None
    fps: int | None = None
    negative_prompt: str | None = None
    size: str | None = None
    steps: int | None = None
    controls: Mapping[str, float] = field(default_factory=dict)

    def given(self) -> dict[str, float | str]:
        """Return the fields that are not left to the model, by name."""
        own = {name: getattr(self, name) for name in ("seed", "frames", "fps", "negative_prompt", "size", "steps")}
        return {name: value for name, value in {**own, **self.controls}.items() if value is not None}


def check(request: AnimationRequest, info: ModelInfo, name: str, *, last_image: bool = False) -> None:
    """Refuse what a model cannot do, before any work.

    Args:
        name: of the model.
        last_image: whether there is a picture that the clip ends with.

    Raises:
        InputError: with the field and the limit.
    """
    known = {one.name: one for one in fields_of(info)}
    given = request.given()
    if request.prompt and "prompt" not in known:
        raise InputError("prompt", "not_supported", f"{name} animates by the picture alone; leave it out")
    if last_image and "last_image" not in known:
        raise InputError("last_image", "not_supported", f"{name} takes no picture to end with; leave it out")
    if info.needs_last_image and not last_image:
        raise InputError("last_image", "missing", f"{name} makes clips between two pictures; send the last one too")
    for key, value in given.items():
        if key not in known:
            raise InputError(key, "not_supported", f"{name} has no such control; leave it out")
        if problem := problem_with(known[key], value):
            raise InputError(key, "out_of_range", problem)


def problem_with(one: Field, value: float | str) -> str | None:
    """Return what is wrong with a field's value, with the limit, or None."""
    if one.kind == "choice":
        return None if value in one.choices else f"{value} is not one of {', '.join(one.choices)}"
    if isinstance(value, str):
        return None
    least = -math.inf if one.least is None else one.least
    most = math.inf if one.most is None else one.most
    if not least <= value <= most:
        which = ", which this model can make" if one.name == "frames" else ""
        return f"{_shown(value)} is outside {_shown(least)} to {_shown(most)}{which}"
    if one.step > 1 and (int(value) - 1) % one.step:
        below = (int(value) - 1) // one.step * one.step + 1
        near = [str(count) for count in (below, below + one.step) if least <= count <= most]
        return f"{value} is not {one.step} * n + 1; near are {' and '.join(near)}"
    return None


def _shown(number: float) -> str:
    return str(int(number)) if 1e6 <= abs(number) < math.inf else f"{number:g}"


def names(fields: Sequence[Field]) -> tuple[str, ...]:
    """Return the names of fields, in order."""
    return tuple(one.name for one in fields)
