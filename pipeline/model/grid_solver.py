"""DDIM on a grid that is written down: for students of checkpoints whose noise levels no formula of ours gives.

A noisy sample is z = a * x + s * e, with clip x, noise e and a^2 + s^2 = 1. Stable Video Diffusion has x + sigma * e
(Karras et al. 2022), divided by sqrt(sigma^2 + 1) before each pass: what the network sees is a noisy sample with
a = 1 / sqrt(sigma^2 + 1) and s = sigma * a, and a step of Euler's method in sigma is one of DDIM there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import EulerDiscreteScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

PredictionType = Literal["epsilon", "sample", "v_prediction"]


class GridScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Takes one step of DDIM from each noise level of its grid to the next, and the last one to the clip.

    Args:
        timesteps: `(steps,)`, what the network is told.
        alphas, sigmas: `(steps,)`, a and s of the same times.
        prediction_type: of the network.
        num_train_timesteps: of the checkpoint.

    Raises:
        ValueError: the three have not the same number of numbers, or there is none.
    """

    order = 1
    init_noise_sigma = 1.0
    _compatibles: list[str] = []  # noqa: RUF012  # diffusers declares it so

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        timesteps: Sequence[float] = (999.0,),
        alphas: Sequence[float] = (0.0,),
        sigmas: Sequence[float] = (1.0,),
        prediction_type: PredictionType = "v_prediction",
        num_train_timesteps: int = 1000,
    ) -> None:
        if not len(timesteps) == len(alphas) == len(sigmas) > 0:
            raise ValueError("timesteps: as many as alphas and sigmas, and one at least")
        if prediction_type not in {"epsilon", "sample", "v_prediction"}:
            raise ValueError(f"prediction_type: {prediction_type!r} is not one of epsilon, sample, v_prediction")
        self.set_timesteps(len(timesteps))

    def set_timesteps(self, num_inference_steps: int | None = None, device: str | torch.device | None = None) -> None:
        """Begin a run.

        Raises:
            ValueError: `num_inference_steps` is not that of the grid.
        """
        config, steps = self.config, len(self.config.timesteps)
        if num_inference_steps != steps:
            raise ValueError(f"num_inference_steps: {num_inference_steps} is not the {steps} that this student has")
        self.num_inference_steps = steps
        self.timesteps = torch.tensor(list(config.timesteps), dtype=torch.float32, device=device)
        self._step = 0

    def scale_model_input(self, sample: Tensor, timestep: object = None) -> Tensor:
        """Return the sample as it is: the network takes it so."""
        return sample

    def step(
        self, model_output: Tensor, timestep: object, sample: Tensor, return_dict: bool = True, **_unused: Any
    ) -> SchedulerOutput | tuple[Tensor]:
        """Take the step that is next.

        Args:
            model_output: the network's prediction, of the shape of `sample`.
            timestep: not looked at.
        """
        config, k = self.config, self._step
        a, s = config.alphas[k], config.sigmas[k]
        z, prediction = sample.float(), model_output.float()
        match config.prediction_type:
            case "v_prediction":
                x = a * z - s * prediction
            case "epsilon":
                x = (z - s * prediction) / a
            case _:
                x = prediction
        self._step = k + 1
        if self._step < len(config.timesteps):
            z = config.alphas[k + 1] * x + config.sigmas[k + 1] / s * (z - a * x)
        else:
            z = x
        z = z.to(sample.dtype)
        return SchedulerOutput(prev_sample=z) if return_dict else (z,)


def told_in_log_sigma(scheduler: SchedulerMixin) -> bool:
    """Return whether a scheduler tells the network a quarter of the logarithm of sigma, as Stable Video Diffusion's."""
    return (
        isinstance(scheduler, EulerDiscreteScheduler)
        and scheduler.config.timestep_type == "continuous"
        and scheduler.config.prediction_type == "v_prediction"
    )


def has_levels(scheduler: SchedulerMixin) -> bool:
    """Return whether noise levels of a scheduler without a solver of ours can be read off: SVD's and CogVideoX's."""
    return told_in_log_sigma(scheduler) or "snr_shift_scale" in scheduler.config
