"""How fast samplers converge: their latents after few steps against a fine solution from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL.Image import Image
from torch import Tensor

from ..model.flow_solver import is_flow
from ..model.solver import log_snr_solver

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

Sample = Callable[[SchedulerMixin, int], Tensor]
"""Called with (scheduler, steps); gives latents, each time from the same noise."""


@dataclass(frozen=True)
class ConvergencePoint:
    """How far a sampler is from the exact solution.

    Attributes:
        steps: taken; one call of the model (with all its guidance branches) each.
        rmse: root mean squared error of the latents to the reference's, in units of latents.
    """

    sampler: str
    steps: int
    rmse: float


def compared_samplers(scheduler: SchedulerMixin) -> dict[str, SchedulerMixin]:
    """Return samplers to compare, by name, all with the noise levels and the prediction type of `scheduler`."""
    solver = log_snr_solver(scheduler)
    if is_flow(scheduler):
        ours = {"solver_order", "log_snr_start"}
        config = {name: value for name, value in solver.config.items() if value is not None and name not in ours}
        unipc = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": config["shift"]}
        return {
            "Euler": FlowMatchEulerDiscreteScheduler.from_config(config),
            "UniPC": UniPCMultistepScheduler(**unipc, use_dynamic_shifting=config["use_dynamic_shifting"]),
            "DPM-Solver++, uniform log-SNR": solver,
        }
    return {
        "DDIM": DDIMScheduler.from_config(
            solver.config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
        ),
        "DPM-Solver++, uniform timesteps": DPMSolverMultistepScheduler.from_config(
            solver.config, timestep_spacing="trailing"
        ),
        "DPM-Solver++, uniform log-SNR": solver,
    }


def convergence(
    sample: Sample,
    samplers: Mapping[str, SchedulerMixin],
    steps: Sequence[int],
    reference: Tensor,
) -> list[ConvergencePoint]:
    """Return the errors of samplers against a fine solution (`reference_latents`), sampler by sampler."""
    points = []
    for name, scheduler in samplers.items():
        for count in steps:
            error = sample(scheduler, count).double() - reference.double()
            points.append(ConvergencePoint(name, count, float(error.square().mean().sqrt())))
    return points


def reference_latents(sample: Sample, scheduler: SchedulerMixin, steps: int = 256) -> Tensor:
    """Return latents of the scheduler's model with steps so fine that they count as exact."""
    # So early that what is left of the first step (its error falls as exp(2 * lambda)) is below the rest.
    return sample(log_snr_solver(scheduler, log_snr_start=-6.0), steps)


def latent_sampler(
    pipe: ImageAnimationPipeline, images: Sequence[Image], prompts: Sequence[str], seed: int = 0, **arguments: Any
) -> Sample:
    """Return what samples latents, `(batch, channels, frames, height, width)`, with any scheduler from one noise.

    The pipeline's own scheduler is put back after each call.

    Args:
        arguments: of the pipeline's call; left out, as the checkpoint says.
    """
    if pipe.family.last_image(pipe.parts) == "always":
        arguments = {"last_image": images, **arguments}

    def sample(scheduler: SchedulerMixin, steps: int) -> Tensor:
        own = pipe.scheduler
        pipe.scheduler = scheduler
        try:
            # Published I2VGen-XL checkpoints draw their picture latents from torch's global generator.
            with torch.random.fork_rng(devices=[]):
                generator = torch.manual_seed(seed)
                output = pipe(
                    images, prompts, num_inference_steps=steps, generator=generator, output_type="latent", **arguments
                )
        finally:
            pipe.scheduler = own
        return cast(Tensor, output.frames)

    return sample
