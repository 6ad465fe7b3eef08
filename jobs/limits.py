"""What the model behind the upstream can make: asked of the server, kept, and held against each request.

Where no server answers, a request is taken as it is, and the server checks it when its turn comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import bad
from .upstream import Upstream

_FRESH_S = 30.0
_HANDLED = frozenset({"image", "prompt", "last_image", "size"})


class Limits:
    """The server's own description of its fields (`/ui/model.json`).

    Attributes:
        about: as the server gave it; empty before it did.
    """

    def __init__(self, upstream: Upstream, clock: Callable[[], float] = time.monotonic) -> None:
        self._upstream, self._clock = upstream, clock
        self._asked = -float("inf")
        self.about: Mapping[str, Any] = {}
        self.reachable = False

    async def refresh(self) -> None:
        """Ask the server again, where that was a while ago."""
        if self._clock() - self._asked < (_FRESH_S if self.reachable else 2.0):
            return
        self._asked = self._clock()
        found = await self._upstream.describe()
        self.reachable = found is not None
        self.about = found or self.about

    @property
    def fields(self) -> dict[str, Mapping[str, Any]]:
        return {one["name"]: one for one in self.about.get("fields", ())}

    @property
    def most_prompt_chars(self) -> int:
        return int(self.about.get("max_prompt_chars", 4000))

    def check(self, fields: Mapping[str, str], pictures: Sequence[str]) -> None:
        """Refuse what the model cannot do.

        Raises:
            ApiError: with the field, the value and the limit.
        """
        if not (known := self.fields):
            return
        for name in pictures:
            if name not in known:
                raise bad(name, "not_supported", "the model takes no such picture; leave it out")
        if known.get("last_image", {}).get("required") and "last_image" not in pictures:
            raise bad("last_image", "missing", "the model makes clips between two pictures; send the last one too")
        for name, text in fields.items():
            if name not in known:
                there = ", ".join(sorted(set(known) - _HANDLED))
                raise bad(name, "unknown_field", f"the model has no such field; there are seconds, size, {there}")
            _check(known[name], name, text)

    def frames_of(self, seconds: str, fps: str | None) -> tuple[int | None, str]:
        """Return the frames that make a clip of this length, and the length that this is.

        The frames are None where nothing is known of the model yet.

        Raises:
            ApiError: it is no number, or longer or shorter than the model can make.
        """
        try:
            wanted = float(seconds)
        except ValueError as error:
            raise bad("seconds", "not_a_number", f"{_shown(seconds)} is not a number of seconds") from error
        if not 0 < wanted < 1e6:
            raise bad("seconds", "out_of_range", f"{_shown(seconds)} is not a length of time")
        known = self.fields
        if not known:
            return None, seconds
        if not {"frames", "fps"} <= known.keys():
            raise bad("seconds", "not_supported", "the clips of this model have one length; leave it out")
        frames, rate = known["frames"], float(fps or known["fps"]["default"])
        step = int(frames.get("step") or 1)
        least, most = int(frames.get("least") or 1), int(frames.get("most") or 1)
        least, most = -(-(least - 1) // step) * step + 1, (most - 1) // step * step + 1
        nearest = min(most, max(least, round((wanted * rate - 1) / step) * step + 1))
        # A clip is as long as frames can make it: half of one beyond what the model makes is still within its range.
        if not least - 0.5 <= wanted * rate <= most + 0.5:
            limits = f"{least / rate:.3g} to {most / rate:.3g}"
            message = f"{seconds} is outside {limits}, which this model can make; the nearest is {nearest / rate:.3g}"
            raise bad("seconds", "out_of_range", message)
        return nearest, f"{nearest / rate:.3g}"

    async def in_frames(self, fields: Mapping[str, str]) -> dict[str, str] | None:
        """Return fields with frames in the place of seconds, which no server could tell when they were submitted.

        None where there is still none that can; what answers without a description gets the seconds as they are.

        Raises:
            ApiError: the model makes no clip of this length.
        """
        if "seconds" not in fields:
            return dict(fields)
        await self.refresh()
        frames, _ = self.frames_of(fields["seconds"], fields.get("fps"))
        if frames is None:
            return dict(fields) if self.reachable else None
        return {name: text for name, text in fields.items() if name != "seconds"} | {"frames": str(frames)}

    def seconds_of(self, frames: str | None, fps: str | None) -> str:
        """Return the length of a clip of so many frames, or of the model's own."""
        known = self.fields
        if not {"frames", "fps"} <= known.keys():
            return "auto"
        return f"{float(frames or known['frames']['default']) / float(fps or known['fps']['default']):.3g}"

    def size_of(self, size: str | None) -> str | None:
        """Return a size as the model knows it; None: whatever is nearest to the picture's shape.

        Raises:
            ApiError: the model has no such size; the text names the nearest.
        """
        if size is None or size == "auto":
            return None
        choices = self.fields.get("size", {}).get("choices") or []
        written = size.lower().replace("*", "x")
        if choices and written not in choices:
            nearest = min(choices, key=lambda one: _distance(one, written))
            message = f"{_shown(size)} is not one of {', '.join(choices)}; the nearest is {nearest}"
            raise bad("size", "unknown_size", message)
        return written

    def size_shown(self, size: str | None) -> str:
        choices = self.fields.get("size", {}).get("choices") or []
        return size or (choices[0] if len(choices) == 1 else "auto")


def _check(known: Mapping[str, Any], name: str, text: str) -> None:
    if known["kind"] == "choice":
        choices = known.get("choices") or []
        if choices and text.lower() not in choices:
            raise bad(name, "out_of_range", f"{_shown(text)} is not one of {', '.join(choices)}")
        return
    if known["kind"] not in ("integer", "number"):
        return
    try:
        value = int(text) if known["kind"] == "integer" else float(text)
    except ValueError as error:
        kind = "a whole number" if known["kind"] == "integer" else "a number"
        raise bad(name, "not_a_number", f"{_shown(text)} is not {kind}") from error
    least, most = known.get("least"), known.get("most")
    if not (least if least is not None else -float("inf")) <= value <= (most if most is not None else float("inf")):
        raise bad(name, "out_of_range", f"{_shown(text)} is outside {least} to {most}")


def _distance(one: str, other: str) -> float:
    """Return how far apart two sizes are; what is no size is as far from all."""
    try:
        (a, b), (c, d) = ([int(side) for side in text.split("x")] for text in (one, other))
    except ValueError:
        return 0.0
    return float(abs(a - c) + abs(b - d))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
