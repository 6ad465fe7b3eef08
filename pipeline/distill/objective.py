"""The loss of one batch: what teacher and student are given, where the student's steps begin, and where both land."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..model.guidance import AnyGuidance, ClipGuidance
from .algorithm import (
    Grid,
    Predict,
    Trajectory,
    distillation_loss,
    forward_states,
    shifted_reconstruction_loss,
    student_states,
)
from .data import Examples
from .memory import SharedBase
from .passes import conditions, draw_scales, own_guidance, student_pass, teacher_pass
from .settings import DistillSettings

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline


class Objective:
    """Computes the loss of a batch.

    Args:
        student: as accelerate gives it, of the form of `Networks`.
        shared: where the student is the teacher's network with additions; None: it has weights of its own.
        sharded: whether FSDP spreads the weights, so that all processes call the networks as often as each other.
    """

    def __init__(
        self,
        teacher: ImageAnimationPipeline,
        student: nn.Module,
        grid: Grid,
        settings: DistillSettings,
        accelerator: Accelerator,
        shared: SharedBase | None,
        *,
        sharded: bool,
    ) -> None:
        self.teacher, self.student, self.grid, self.settings = teacher, student, grid, settings
        self.accelerator, self.guidance = accelerator, own_guidance(teacher)
        self._shared, self._sharded = shared, sharded

    def attached(self, *, on: bool = True) -> AbstractContextManager[None]:
        """Inside, networks that teacher and student share are the student's, or the teacher's where `on` is false."""
        return nullcontext() if self._shared is None else self._shared.attached(on=on)

    def loss(self, examples: Examples, number: int) -> Tensor:
        """Return loss of a batch; its random numbers depend on the seed and `number` alone."""
        s, device, family = self.settings, self.accelerator.device, self.teacher.family
        random = torch.Generator().manual_seed((s.seed * 1_000_003 + number) % 2**63)
        count = len(examples.captions)
        teacher, student, hold = self.passes(examples, random)
        frames, size = self.teacher.config.num_frames, self.teacher.default_size
        shape = (count, *family.latent_shape(self.teacher.parts, frames, *size))
        noise, fresh = (hold(torch.randn(shape, generator=random).to(device)) for _ in range(2))
        # Each step of the student is drawn as often as every other, in the batch too where it is large enough.
        first = int(torch.randint(s.student_steps, (), generator=random))
        order = torch.randperm(count, generator=random)
        steps = ((first + order) % s.student_steps).to(device)
        z: Tensor | None = None
        if s.trajectory is Trajectory.FORWARD:
            z = hold(forward_states(self.grid, self._latents(examples).float(), noise, steps))
        with self.attached():
            if z is None:
                z = self._backward_states(student, noise, steps)
            if s.shifted_reconstruction:
                return shifted_reconstruction_loss(self.grid, student, teacher, z, steps, fresh, s.shift)
            return distillation_loss(self.grid, student, teacher, z, steps)

    def passes(
        self, examples: Examples, random: torch.Generator
    ) -> tuple[Predict, Predict, Callable[[Tensor], Tensor]]:
        """Return teacher and student as they are conditioned on the examples, and what puts given frames in place."""
        limits, guidance = self.settings.guidance_range, self.guidance
        scales = None if limits is None else draw_scales(limits, len(examples.captions), random)
        by_clip: AnyGuidance = guidance
        if scales is not None and self.teacher.config.guidance_range is None:
            by_clip = ClipGuidance(scales.to(self.accelerator.device), guidance.image)
        of_teacher, of_student = conditions(self.teacher, examples, by_clip, random, scales)
        family, parts, grid = self.teacher.family, self.teacher.parts, self.grid
        of_teacher = family.with_grid(parts, of_teacher, grid.timesteps)
        of_student = family.with_grid(parts, of_student, grid.timesteps[grid.starts[:-1]])
        shared = self._shared is not None
        return (
            teacher_pass(
                self.teacher,
                of_teacher,
                by_clip,
                self.student if shared and self._sharded else None,  # whose call gathers weights that are spread
                lambda: self.attached(on=False),
            ),
            student_pass(self.teacher, self.student, of_student, parts.dtype if shared else torch.float32),
            lambda z: family.hold(z, of_student),
        )

    @torch.no_grad()
    def _latents(self, examples: Examples) -> Tensor:
        """Return the latents of the examples' clips, `(batch, channels, frames, h, w)`."""
        if examples.encoded is not None and examples.encoded.clips is not None:
            return examples.encoded.clips.to(self.accelerator.device)
        assert examples.clips is not None
        return self.teacher.family.encode_clip(self.teacher.parts, examples.clips * 2 - 1)

    @torch.no_grad()
    def _backward_states(self, student: Predict, noise: Tensor, steps: Tensor) -> Tensor:
        if not self._sharded:
            return student_states(self.grid, student, noise, steps)
        # FSDP's processes gather weights together: each makes as many calls as the one that needs most.
        most, row = int(self.accelerator.gather(steps.max()[None]).max()), steps.new_zeros(1)
        z = student_states(self.grid, student, noise, steps)
        for _ in range(most - int(steps.max())):
            student(noise[:1], self.grid.timesteps[row], row)
        return z
