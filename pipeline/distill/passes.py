"""Teacher and student as the algorithm calls them: what they are told of a batch, and their passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..families import Conditioning, guidance_embedding
from ..families.guided import GUIDANCE_WIDTH, guidance_width
from ..guidance import ClipGuidance, Guidance
from .algorithm import Predict
from .data import Examples

if TYPE_CHECKING:
    from ..animation import ImageAnimationPipeline

AnyGuidance = Guidance | ClipGuidance
"""Of a batch: the same scales for all clips, or a text scale for each."""


def draw_scales(limits: tuple[float, float], count: int, random: torch.Generator) -> Tensor:
    """Scales of the caption, `(count,)`, each as likely as any other (Meng et al. 2023, section 3.1)."""
    least, most = limits
    return least + (most - least) * torch.rand(count, generator=random)


@torch.no_grad()
def conditions(
    teacher: ImageAnimationPipeline,
    examples: Examples,
    guidance: AnyGuidance,
    random: torch.Generator,
    scales: Tensor | None = None,
) -> tuple[Conditioning, Conditioning]:
    """What teacher (all branches of `guidance`) and student (the full one) are told.

    Args:
        scales: `(batch,)`, that the student is told; a teacher that is a guided student is told them too.
    """
    height, width = teacher.default_size
    # I2VGen-XL as published draws from its posterior with torch's global generator.
    with seeded(int(torch.randint(2**62, (), generator=random)), teacher.device):
        seen = teacher.family.condition_image(
            teacher, examples.pictures, teacher.config.num_frames, height, width, random, motion_scale=0
        )
    empty = [""] * len(examples.captions)
    clip_skip = teacher.default_clip_skip
    of_teacher, of_student = (
        teacher.conditions(examples.captions, empty, seen, branches, teacher.config.fps, clip_skip)
        for branches in (guidance, Guidance(1.0, 1.0))
    )
    if scales is None:
        return of_teacher, of_student
    told = guidance_embedding(scales.to(teacher.device), guidance_width(teacher.unet) or GUIDANCE_WIDTH)
    if of_teacher.guidance is not None:
        of_teacher = replace(of_teacher, guidance=told.to(of_teacher.guidance.dtype))
    return of_teacher, replace(of_student, guidance=told)


def teacher_pass(teacher: ImageAnimationPipeline, told: Conditioning, guidance: AnyGuidance) -> Predict:
    """The teacher with all its branches combined."""
    family, unet = teacher.family, teacher.unet

    def predict(z: Tensor, timesteps: Tensor, rows: Tensor | None) -> Tensor:
        assert rows is None
        stacked, times = torch.cat([z] * guidance.passes), timesteps.repeat(guidance.passes)
        return guidance.combine(family.predict(unet, stacked.to(unet.dtype), times, told).float())

    return predict


def student_pass(teacher: ImageAnimationPipeline, student: nn.Module, told: Conditioning) -> Predict:
    """A student of the teacher's family, in float32 as it is trained."""
    told = told.to(torch.float32)

    def predict(z: Tensor, timesteps: Tensor, rows: Tensor | None) -> Tensor:
        return teacher.family.predict(student, z, timesteps, told if rows is None else told.of_rows(rows))

    return predict


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generator begins at `seed` inside, and is left as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
