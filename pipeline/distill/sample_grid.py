"""What a student makes while it is trained: the same pictures and noise each time, below the teacher's clips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..media.video import Clip, sheet
from .data import Examples

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline


class SampleGrid:
    """Draws a picture of clips, two rows each: the teacher's and the student's.

    Args:
        teacher: sampled once, as it is by default.
        examples: pictures and captions; the first `count` are animated.
        folder: for `update-000100.png` and so on; made when it is needed.
        seed: of the noise, the same at every call.
    """

    def __init__(
        self, teacher: ImageAnimationPipeline, examples: Examples, folder: Path, seed: int = 0, count: int = 4
    ) -> None:
        self.teacher, self.folder, self.seed = teacher, folder, seed
        self.pictures, self.captions = examples.pictures[:count], examples.captions[:count]
        self._above: list[Clip] = []

    def __call__(self, student: ImageAnimationPipeline, updates: int) -> Path:
        """Animate with a student of so many updates, and write the picture."""
        self._above = self._above or self._animate(self.teacher)
        rows = [clip for pair in zip(self._above, self._animate(student), strict=True) for clip in pair]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"update-{updates:06d}.png"
        sheet(rows).save(path)
        return path

    def _animate(self, pipe: ImageAnimationPipeline) -> list[Clip]:
        clips = []
        # The training's own random numbers stay as they were, so that samples change nothing of it.
        with torch.random.fork_rng():
            for k, (picture, caption) in enumerate(zip(self.pictures, self.captions, strict=True)):
                torch.manual_seed(self.seed + k)
                noise = torch.Generator().manual_seed(self.seed + k)
                frames = pipe(picture, caption, generator=noise, output_type="np").frames[0]
                clips.append((np.asarray(frames) * 255).round().astype(np.uint8))
        return clips
