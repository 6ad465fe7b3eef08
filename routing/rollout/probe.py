"""The same request to both versions, and a look at the two clips: a broken model may answer fast and well-formed.

The measures are cheap ones, taken from the clip that the stable version makes of the same request: a clip is blank when
its frames have hardly any contrast, and still when its frames hardly differ, while the stable version's do. It strays
when its first frame, which both have from the picture, is another one, and drifts when it ends far from where it began
while the stable version's does not.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageSequence

from ..errors import InputError
from .counters import Version
from .settings import Probe

LEAST_CONTRAST = 0.25
"""Of the stable clip's: a student may be softer than its teacher, and is not grey all over."""
LEAST_MOTION = 0.1
"""Likewise."""
LEAST_FIRST_FRAME_DB = 12.0
"""PSNR of the first frames. Noise is 8 to 9 dB from any picture."""
MOST_DRIFT = 4.0
"""Likewise: of the stable clip's, and of `_FAR` at least."""
_NOTICEABLE = 0.5
"""Levels of 255: a stable clip with less contrast or motion says nothing of the candidate's."""
_FAR = 10.0
"""Levels of 255: a stable clip that drifts by less counts as if it drifted by so much."""
LEAST_STABLE_CONTRAST = 2.0
"""Levels of 255: with less contrast a stable clip is blank to anybody, and none to compare with."""
_MOST_FRAMES = 256
_SIDE = 64  # of the frames that are compared: versions may differ in size


class ProbeError(Exception):
    """A version gives no clip; the text says what instead."""


@dataclass(frozen=True)
class Look:
    """What a clip looks like, in levels of 0 to 255.

    Attributes:
        contrast: standard deviation of brightness within a frame, mean of all frames.
        motion: mean change of a pixel from frame to frame.
        frames: scaled down, `(frames, side, side)`, uint8.
    """

    contrast: float
    motion: float
    frames: NDArray[np.uint8] = field(repr=False, compare=False)

    @property
    def drift(self) -> float:
        """Mean change of a pixel from the first frame to the last."""
        return float(np.abs(self.frames[-1].astype(np.float64) - self.frames[0]).mean())

    def psnr_db(self, other: Look, frames: int | None = None) -> float:
        """Return the peak signal-to-noise ratio of the frames that both have, or the first of them; at most 100 dB."""
        count = min(len(self.frames), len(other.frames), frames or _MOST_FRAMES)
        error = (self.frames[:count].astype(np.float64) - other.frames[:count]) / 255
        return float(-10 * np.log10(max(1e-10, (error**2).mean())))


def ask(url: str, probe: Probe, base: Path = Path(), version: Version | None = None) -> bytes:
    """Send the request, and return the clip.

    Args:
        url: of a GPU server that has no other job, or of a dispatcher, with the path that takes jobs.
        probe: what is asked.
        base: folder that its picture is seen from.
        version: of the model, which dispatchers know apart.

    Raises:
        ProbeError: there is no clip, twice in a row.
        InputError: the picture cannot be read.
    """
    headers = {"X-Request-ID": f"probe-{uuid.uuid4()}"} | ({"X-Stillmotion-Version": version} if version else {})
    files = {"image": ("probe.png", picture(probe, base))}
    problem = ""
    for _ in range(2):
        try:
            answer = httpx.post(
                url, data=dict(probe.form), files=files, headers=headers, timeout=probe.limit_s, trust_env=False
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = f"no answer ({str(error) or type(error).__name__})"
            continue
        if answer.status_code == httpx.codes.OK:
            return answer.content
        problem = f"status {answer.status_code} ({answer.text[:120].strip()})"
    raise ProbeError(problem)


def picture(probe: Probe, base: Path) -> bytes:
    """Return the picture that is animated.

    Raises:
        InputError: the file cannot be read.
    """
    if probe.picture is not None:
        try:
            return (base / probe.picture).read_bytes()
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", key="probe.picture") from None
    slope = np.linspace(40, 200, 512).astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(slope, (512, 1))] * 3, axis=-1))
    ImageDraw.Draw(image).ellipse((180, 180, 330, 330), fill=(200, 40, 40))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def look(clip: bytes) -> Look:
    """Look at an animated picture (GIF, WebP, APNG).

    Raises:
        ProbeError: it is none.
    """
    try:
        with Image.open(io.BytesIO(clip)) as file:
            frames, small = [], []
            for frame in ImageSequence.Iterator(file):
                grey = frame.convert("L")
                frames.append(np.asarray(grey, dtype=np.float64))  # (H, W)
                small.append(np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX)))
                if len(frames) == _MOST_FRAMES:
                    break
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ProbeError(f"no clip that can be looked at ({error})") from None
    changes = [np.abs(after - before).mean() for before, after in pairwise(frames)]
    contrast, motion = np.mean([frame.std() for frame in frames]), np.mean(changes) if changes else 0.0
    return Look(float(contrast), float(motion), np.stack(small))


def look_at_stable(clip: bytes) -> Look:
    """Look at the stable version's clip, which the candidate's is to be compared with.

    Raises:
        ProbeError: it is none, or blank, and the candidate's would be taken for the wrong one of two that differ.
    """
    found = look(clip)
    if found.contrast < LEAST_STABLE_CONTRAST:
        raise ProbeError(f"a blank clip (contrast {found.contrast:.1f} of 255)")
    return found


def wrong_with(stable: Look, candidate: Look) -> str:
    """Return what is wrong with a candidate's clip, in one line; empty: nothing that shows."""
    wrong = _wrong(stable, candidate)
    if not wrong:
        return ""
    text = f"contrast {candidate.contrast:.1f} and motion {candidate.motion:.2f} of 255"
    text += f", the stable version's {stable.contrast:.1f} and {stable.motion:.2f}; first frames are"
    text += f" {stable.psnr_db(candidate, 1):.1f} dB apart, first and last {candidate.drift:.1f} and {stable.drift:.1f}"
    return f"the candidate's clip is {' and '.join(wrong)}: {text}"


def _wrong(stable: Look, candidate: Look) -> Sequence[str]:
    checks: Mapping[str, bool] = {
        "blank": stable.contrast > _NOTICEABLE and candidate.contrast < LEAST_CONTRAST * stable.contrast,
        "still": stable.motion > _NOTICEABLE and candidate.motion < LEAST_MOTION * stable.motion,
        "astray": candidate.psnr_db(stable, 1) < LEAST_FIRST_FRAME_DB,
        "adrift": candidate.drift > MOST_DRIFT * max(_FAR, stable.drift),
    }
    return [name for name, wrong in checks.items() if wrong]
