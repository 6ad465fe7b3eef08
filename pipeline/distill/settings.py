"""How a student is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .algorithm import Trajectory


@dataclass(frozen=True)
class DistillSettings:
    """How a student is trained.

    Attributes:
        student_steps: of the student.
        teacher_steps: of the teacher while it teaches; the student's stand for as equal a number of them as can be.
            0: as many as it has by default.
        start: folder of a student of the same teacher that training goes on from; empty: the teacher's weights.
        updates: number of optimiser steps.
        accumulate: batches an update.
        learning_rate: peak; after `warmup` updates it falls along a half cosine to a hundredth.
        ema_decay: of the averaged weights, which are the student.
        trajectory: where noisy clips come from, see `pipeline.distill.algorithm`.
        shifted_reconstruction: Imagine Flash's loss instead of the landing of the teacher's steps.
        shift: of that loss.
        noise_correction: Imagine Flash's first step.
        guidance_range: least and most scale of the caption, for a student that is told it; None: the
            teacher's scale becomes part of its weights.
        mixed_precision: "no", "bf16" or "fp16", of the student's passes; the teacher keeps its own.
        lora_rank: train additions of this rank to the attention layers, merged at the end; 0: all weights.
        gradient_checkpointing: compute activations again instead of keeping them.
        encode_once: encode captions and pictures of a folder before the first update, and keep what comes of it in
            files; the text encoder then leaves the GPU. Generated clips are new each time and are not kept.
        clips_per_video: how many different clips a video of a folder gives, one at each visit in turn; they can be
            encoded once. 0: another one at each visit, which is encoded when it comes.
        workers: processes that read examples; 0: the one that trains does.
        checkpoint_every: updates between checkpoints.
        sample_every: updates between grids of sample clips; 0: none are drawn.
        seed: of all random numbers.

    Raises:
        ValueError: a setting does not fit; the text begins with its name.
    """

    student_steps: int = 8
    teacher_steps: int = 0
    start: str = ""
    updates: int = 400
    accumulate: int = 1
    learning_rate: float = 4e-4
    warmup: int = 10
    weight_decay: float = 0.0
    ema_decay: float = 0.98
    trajectory: Trajectory = Trajectory.BACKWARD
    shifted_reconstruction: bool = False
    shift: float = 0.9
    noise_correction: bool = False
    guidance_range: tuple[float, float] | None = None
    mixed_precision: str = "no"
    lora_rank: int = 0
    gradient_checkpointing: bool = False
    encode_once: bool = True
    clips_per_video: int = 4
    workers: int = 0
    checkpoint_every: int = 50
    sample_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "trajectory", Trajectory(self.trajectory))
        for name in ("updates", "accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1")
        for name in (
            "teacher_steps", "warmup", "weight_decay", "lora_rank", "clips_per_video", "workers", "sample_every", "seed"
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is below 0")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: {self.learning_rate} is not above 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: {self.ema_decay} is outside 0 to 1")
        if not 0 < self.shift <= 1:
            raise ValueError(f"shift: {self.shift} is outside 0 to 1")
        if self.guidance_range is not None:
            object.__setattr__(self, "guidance_range", _checked_range(self.guidance_range))
        if self.mixed_precision not in {"no", "bf16", "fp16"}:
            raise ValueError(f"mixed_precision: {self.mixed_precision!r} is not one of no, bf16, fp16")


def _checked_range(limits: Sequence[object]) -> tuple[float, float]:
    numbers = [float(limit) for limit in limits if isinstance(limit, (int, float))]
    if len(numbers) != 2 or len(limits) != 2 or not 0 <= numbers[0] < numbers[1] <= 100:
        raise ValueError(f"guidance_range: {list(limits)} is not a least and a most scale within 0 to 100")
    return numbers[0], numbers[1]
