"""What a student is: the teacher's components, with a U-Net, a sampler and a plan of its own."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..model.guidance import Guidance
from ..model.solver import log_snr_solver
from .algorithm import Grid

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline


def teacher_grid(
    teacher: ImageAnimationPipeline, student_steps: int, noise_correction: bool = False, teacher_steps: int = 0
) -> Grid:
    """The grid of a teacher, divided into the student's steps.

    Args:
        teacher_steps: of that grid; 0: as many as the teacher is sampled with by default, or the next lower
            multiple of the student's.

    Raises:
        NotSplittable: the teacher's steps cannot be divided so.
    """
    scheduler = copy.deepcopy(teacher.scheduler)
    own: int = teacher.config.num_inference_steps
    if not teacher_steps:
        teacher_steps = own - own % student_steps if 0 < student_steps <= own else own
    return Grid.of(scheduler, teacher_steps, student_steps, noise_correction)


def teacher_digest(teacher: ImageAnimationPipeline) -> str:
    """SHA-256 of what a teacher teaches with: the weights of each part, its scheduler, the layout of its clips."""
    digest = hashlib.sha256()
    for name in (*teacher.family.networks, "vae", "text_encoder", "image_encoder"):
        part = getattr(teacher, name, None)
        for key, weights in sorted(() if part is None else part.state_dict().items()):
            digest.update(f"{name} {key} {tuple(weights.shape)} {weights.dtype}\n".encode())
            # As one row of bytes, without a second copy in memory where it is on the processor.
            digest.update(memoryview(weights.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    scheduler = {key: value for key, value in teacher.scheduler.config.items() if not key.startswith("_")}
    own = {key: teacher.config[key] for key in (*teacher.family.options, "num_frames", "fps")}
    digest.update(json.dumps([type(teacher.scheduler).__name__, scheduler, own], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def guidance_of(teacher: ImageAnimationPipeline) -> Guidance:
    """The guidance that a checkpoint is sampled with by default."""
    return Guidance(teacher.config.guidance_scale, teacher.config.image_guidance_scale)


def own_scale(teacher: ImageAnimationPipeline) -> float:
    """The scale of the caption that a teacher is sampled with by default; of a student, that of the first teacher."""
    config = teacher.config
    scale: float = config.guidance_scale if config.distilled_guidance_scale is None else config.distilled_guidance_scale
    return scale


def check_guidance_range(teacher: ImageAnimationPipeline, limits: tuple[float, float] | None) -> None:
    """Whether a student of this teacher can be told scales within limits (None: it is told none).

    Raises:
        ValueError: with the reason.
    """
    known = teacher.config.guidance_range
    if known is not None and (limits is None or not known[0] <= limits[0] < limits[1] <= known[1]):
        raise ValueError(f"guidance_range: the teacher is told its scale; say which are wanted, within {known}")
    if limits is not None and known is None and teacher.config.distilled_guidance_scale is not None:
        raise ValueError("guidance_range: the teacher has its scale in its weights, and can be given no other")
    if limits is not None and not limits[0] <= own_scale(teacher) <= limits[1]:
        raise ValueError(
            f"guidance_range: {list(limits)} leaves out {own_scale(teacher):g}, the teacher's own scale, which is "
            "the student's where it is told none"
        )


def build_student(
    teacher: ImageAnimationPipeline, network: nn.Module, grid: Grid, guidance_range: tuple[float, float] | None = None
) -> ImageAnimationPipeline:
    """A pipeline around a student's network; the other components are the teacher's.

    It samples with DDIM (DPM-Solver++ of order 1) on the student's own grid, which is kept in the
    scheduler's config, and in one pass a step: guidance is part of the weights.

    Args:
        guidance_range: of the scale of the caption, where the network is told it.
    """
    from ..model.animation import ImageAnimationPipeline

    config, family = teacher.config, teacher.family
    solver = log_snr_solver(
        teacher.scheduler,
        solver_order=1,
        timesteps=[float(t) for t in grid.student_timesteps],
        noise_correction=grid.noise_correction,
    )
    # The motion adapter of a PIA checkpoint is in its U-Net by now.
    own = {family.networks[0]: network, "scheduler": solver, "motion_adapter": None}
    student = ImageAnimationPipeline(
        **{name: getattr(teacher, name) for name in family.components if name not in own},
        **{name: part for name, part in own.items() if name in family.components},
        **{name: config[name] for name in family.options},
        num_inference_steps=grid.student_steps,
        guidance_scale=1.0,
        image_guidance_scale=1.0,
        # Of a student of a student, the scales are still those of the first teacher.
        distilled_guidance_scale=own_scale(teacher),
        distilled_image_guidance_scale=config.distilled_image_guidance_scale
        if config.distilled_guidance_scale is not None
        else config.image_guidance_scale,
        guidance_range=guidance_range,
        num_frames=config.num_frames,
        fps=config.fps,
        height=config.height,
        width=config.width,
    )
    student.set_progress_bar_config(disable=True)
    student.to(teacher.device)
    return student
