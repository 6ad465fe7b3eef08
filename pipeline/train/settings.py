"""How the embedded teacher is built and trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TeacherSettings:
    """How the teacher is built and trained; the defaults make the shipped one.

    For the first `bind_steps` the clips are plain, no condition is dropped and nearly all timesteps
    are T: motion is bound to the caption. Then come all clips, all timesteps and the dropping.
    `refine_steps` more follow on a second learning-rate schedule, that starts again at the peak.
    `drop_text`, `drop_image` and `drop_both` are the shares of clips without caption, picture or
    either, from which the guidance branches are learned. Shapes and motions in `often` are drawn three
    times as often as the others. `workers` processes make the clips; a GPU is fed by eight or so.
    """

    size: int = 32
    frames: int = 8
    fps: int = 8
    block_out_channels: tuple[int, ...] = (32, 64)
    head_dim: int = 8
    width: int = 32
    steps: int = 3000
    bind_steps: int = 700
    refine_steps: int = 4600
    batch: int = 8
    learning_rate: float = 1e-3
    drop_text: float = 0.10
    drop_image: float = 0.05
    drop_both: float = 0.05
    guidance_scale: float = 2.0
    image_guidance_scale: float = 1.5
    ema_decay: float = 0.999
    often: tuple[str, ...] = ()
    workers: int = 1
    seed: int = 0
