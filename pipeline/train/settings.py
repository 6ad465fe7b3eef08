"""How the embedded teacher is built and trained. Needs no PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class VaeSettings:
    """How the video autoencoder is built and trained; the defaults make the shipped one.

    The first `still_steps` see single frames, four for each clip of a batch; then come `clip_steps` with clips of
    `frames`, parts of scenes about twice as long. It is judged on `judged` whole scenes.
    """

    size: int = 64
    frames: int = 9
    channels: int = 40
    base: int = 24
    decoder_base: int = 24
    still_steps: int = 1100
    clip_steps: int = 600
    batch: int = 4
    learning_rate: float = 1e-3
    kl_weight: float = 1e-5
    judged: int = 64
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.size, self.frames)

    @property
    def steps(self) -> int:
        return self.still_steps + self.clip_steps


@dataclass(frozen=True)
class TeacherSettings:
    """How the teacher is built and trained; the defaults make one like the shipped one.

    For the first `bind_steps` the scenes are plain, no caption is dropped and nearly all noise levels are 1: motion is
    bound to the caption, in short clips first. Then come all scenes, all levels and the dropping. A scene is encoded
    once and seen `reuse` times, each with other noise. `matrix_rate` is the learning rate of the blocks' matrices.
    `compile_blocks` compiles the blocks once clips are whole: a third faster, where there is a C++ compiler.
    """

    size: int = 64
    frames: int = 17
    fps: int = 12
    held: bool = True
    width: int = 160
    layers: int = 6
    text_width: int = 64
    steps: int = 3400
    bind_steps: int = 600
    batch: int = 16
    reuse: int = 8
    learning_rate: float = 1e-3
    matrix_rate: float = 0.02
    drop_text: float = 0.1
    shift: float = 3.0
    guidance_scale: float = 2.0
    teacher_steps: int = 40
    ema_decay: float = 0.999
    compile_blocks: bool = False
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.size, self.frames)
        if self.width % 32 or self.width < 32:
            raise ValueError(f"width: {self.width} is not a multiple of 32, the width of a head")


def _check(size: int, frames: int) -> None:
    """Refuse clips that the autoencoder cannot divide into cells.

    Raises:
        ValueError: the text begins with the name of the setting.
    """
    if size < 16 or size % 16:
        raise ValueError(f"size: {size} is not a multiple of 16")
    if frames < 5 or frames % 4 != 1:
        raise ValueError(f"frames: {frames} is not 4 n + 1, with n at least 1")


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100, hold: float = 0.0, end: float = 0.02) -> float:
    """Rise linearly for `warmup` steps, stay at the peak for the share `hold` of the rest, then fall along half a
    cosine to the share `end` of it.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    falling = min(1.0, max(0.0, (share - hold) / (1 - hold)))
    return peak * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * falling)))
