"""What a student is: the teacher's components, with a U-Net, a sampler and a plan of its own."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from ..media.video import Clip, sheet
from ..model.families.guided import GUIDANCE_WEIGHTS, guided_unet
from ..model.grid_solver import GridScheduler, has_levels
from ..model.solver import log_snr_solver, solver_problem
from ..serve.engine import load_pipeline
from .algorithm import Grid, NotSplittable
from .data import Examples
from .memory import add_lora
from .passes import Networks, networks_of, seeded
from .settings import DistillSettings

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline


def grid_problem(teacher: ImageAnimationPipeline) -> str | None:
    """Return why a student's noise levels could not be those of its teacher, or None."""
    return None if has_levels(teacher.scheduler) else solver_problem(teacher.scheduler)


def teacher_grid(
    teacher: ImageAnimationPipeline, student_steps: int, noise_correction: bool = False, teacher_steps: int = 0
) -> Grid:
    """Return the grid of a teacher, divided into the student's steps.

    Args:
        teacher_steps: of that grid; 0: as many as the teacher is sampled with by default.

    Raises:
        NotSplittable: there is no such grid.
    """
    if (problem := grid_problem(teacher)) is not None:
        raise NotSplittable(problem)
    parts, family, config = teacher.parts, teacher.family, teacher.config
    shape = (1, *family.latent_shape(parts, config.num_frames, *teacher.default_size))
    ratio = config.boundary_ratio if "boundary_ratio" in family.options else None
    return Grid.of(
        copy.deepcopy(teacher.scheduler),
        teacher_steps or config.num_inference_steps,
        student_steps,
        noise_correction,
        lay=lambda scheduler, steps: family.set_timesteps(scheduler, steps, shape, torch.device("cpu")),
        boundary=None if ratio is None else ratio * teacher.scheduler.config.num_train_timesteps,
    )


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


def own_scale(teacher: ImageAnimationPipeline) -> float:
    """The scale of the caption that a teacher is sampled with by default; of a student, that of the first teacher."""
    config = teacher.config
    scale: float = config.guidance_scale if config.distilled_guidance_scale is None else config.distilled_guidance_scale
    return scale


def check_guidance_range(teacher: ImageAnimationPipeline, limits: tuple[float, float] | None) -> None:
    """Refuse limits of the scale that a student of this teacher cannot be told (None: it is told none).

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


def shares_base(settings: DistillSettings) -> bool:
    """Return whether the student is the teacher's own network with additions (`SharedBase`), and no copy of it."""
    return bool(settings.lora_rank) and settings.guidance_range is None and not settings.start


def student_network(teacher: ImageAnimationPipeline, settings: DistillSettings) -> Networks:
    """Return what a student begins as where it shares nothing: the teacher's networks in float32, with LoRA and an
    input of guidance where they are wanted.

    Raises:
        ValueError: `start` is no student of this teacher's shape, or the network can be told no guidance scale.
    """
    guided = settings.guidance_range is not None
    if guided and teacher.family.flow:
        raise ValueError(f"guidance_range: networks of the {teacher.family.name} family can be told no scale")
    networks: dict[str, nn.Module] = {}
    for name, own in networks_of(teacher).items():
        network: nn.Module = guided_unet(own) if guided else copy.deepcopy(own)
        if settings.start:
            network.load_state_dict(_weights_of(settings.start, name, like=network))
        network = network.float().requires_grad_().eval()
        if settings.lora_rank:
            with seeded(settings.seed, torch.device("cpu")):
                network = add_lora(network, settings.lora_rank, {GUIDANCE_WEIGHTS} if guided else ())
        networks[name] = network
    return Networks(teacher, networks)


def _weights_of(folder: str, name: str, like: nn.Module) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = getattr(load_pipeline(folder), name).state_dict()
    shapes = {name: weight.shape for name, weight in weights.items()}
    if shapes != {name: weight.shape for name, weight in like.state_dict().items()}:
        raise ValueError(f"start: {folder} has other weights than a student of this teacher")
    return weights


def build_student(
    teacher: ImageAnimationPipeline,
    networks: nn.Module | Mapping[str, nn.Module],
    grid: Grid,
    guidance_range: tuple[float, float] | None = None,
) -> ImageAnimationPipeline:
    """Return a pipeline around a student's network; the other components are the teacher's.

    It samples with DDIM or Euler's method (DPM-Solver++ of order 1) on the student's own grid, which is kept in the
    scheduler's config, and in one pass a step: guidance is part of the weights.

    Args:
        networks: by name, where the teacher has more than one.
        guidance_range: of the scale of the caption, where the network is told it.
    """
    from ..model.animation import ImageAnimationPipeline

    config, family = teacher.config, teacher.family
    solver = _solver(teacher, grid)
    # The motion adapter of a PIA checkpoint is in its U-Net by now.
    trained = {family.networks[0]: networks} if isinstance(networks, nn.Module) else dict(networks)
    own = {**trained, "scheduler": solver, "motion_adapter": None}
    student = ImageAnimationPipeline(
        **{name: getattr(teacher, name) for name in family.components if name not in own},
        **{name: part for name, part in own.items() if name in family.components},
        **{name: config[name] for name in family.options},
        num_inference_steps=grid.student_steps,
        guidance_scale=1.0,
        image_guidance_scale=1.0 if family.drops_picture else None,
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
    student.text_encoding = teacher.text_encoding  # the text encoder is the same one
    student.to(teacher.parts.device)
    if student.text_encoding.placement == "offload":
        student.text_encoder.to("cpu")
    return student


def _solver(teacher: ImageAnimationPipeline, grid: Grid) -> SchedulerMixin:
    """Return what samples a student, with its grid in the config."""
    told = grid.student_timesteps
    if grid.prediction_type == "flow_prediction":
        return log_snr_solver(teacher.scheduler, solver_order=1, timesteps=told, sigmas=grid.student_sigmas)
    if solver_problem(teacher.scheduler) is None:
        return log_snr_solver(teacher.scheduler, solver_order=1, timesteps=told, noise_correction=grid.noise_correction)
    return GridScheduler(
        told,
        grid.student_alphas,
        grid.student_sigmas,
        grid.prediction_type,
        teacher.scheduler.config.num_train_timesteps,
    )


class SampleGrid:
    """Draws what a student makes while it is trained: pairs of rows, the teacher's clip above the student's.

    Args:
        teacher: sampled once, as it is by default.
        examples: pictures and captions; the first four are animated, from the same noise at every call.
        folder: for `update-000100.png` and so on; made when it is needed.
    """

    def __init__(self, teacher: ImageAnimationPipeline, examples: Examples, folder: Path, seed: int = 0) -> None:
        self.teacher, self.folder, self.seed = teacher, folder, seed
        self.pictures, self.captions = examples.pictures[:4], examples.captions[:4]
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
        for k, (picture, caption) in enumerate(zip(self.pictures, self.captions, strict=True)):
            # The training's own random numbers stay as they were, so that samples change nothing of it.
            with seeded(self.seed + k, pipe.parts.device):
                noise = torch.Generator().manual_seed(self.seed + k)
                prompt = caption if pipe.family.takes_prompt else None
                end = picture if pipe.family.last_image(pipe.parts) == "always" else None
                frames = pipe(picture, prompt, last_image=end, generator=noise, output_type="np").frames[0]
            clips.append((np.asarray(frames) * 255).round().astype(np.uint8))
        return clips
