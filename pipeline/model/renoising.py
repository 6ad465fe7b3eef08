"""The sampler of students that learn by distribution matching (DMD2, Yin et al. 2024, section 4.4), such as FastWan."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class RenoisingScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Predicts the clip at each of a few timesteps, and noises it again to the next one::

        x_0 = x_t - s_t v        x_u = (1 - s_u) x_0 + s_u noise        s_t = t / T

    Args:
        timesteps: descending, within 0 (not allowed) to T; a student is sampled with these alone.
        num_train_timesteps: T.

    Raises:
        ValueError: the timesteps are none such; the text begins with `timesteps`.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        timesteps: Sequence[float] = (1000.0,),
        num_train_timesteps: int = 1000,
        prediction_type: str = "flow_prediction",
    ) -> None:
        levels = [float(t) for t in timesteps]
        if not levels or not all(0 < t <= num_train_timesteps for t in levels):
            raise ValueError(f"timesteps: {levels} are not within 0 (not allowed) to {num_train_timesteps}")
        if any(one <= other for one, other in pairwise(levels)):
            raise ValueError(f"timesteps: {levels} do not descend")
        if prediction_type != "flow_prediction":
            raise ValueError(f"prediction_type: {prediction_type!r} is not flow_prediction, the one that there is")
        self._levels = levels
        self.timesteps = torch.tensor(levels)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay the grid.

        Raises:
            ValueError: a number of steps that the student does not have.
        """
        if num_inference_steps != len(self._levels):
            raise ValueError(
                f"num_inference_steps: {num_inference_steps} is not {len(self._levels)}, the steps of this student"
            )
        self.timesteps = torch.tensor(self._levels, device=device)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the sample as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Return the sample at the next timestep; after the last one the clip that is predicted.

        Args:
            model_output: flow v = noise - x_0, of the shape of `sample`.
            generator: of the noise; one, or one for each clip.
        """
        number = self._levels.index(min(self._levels, key=lambda level: abs(level - float(timestep))))
        clip = sample - self._sigma(number) * model_output
        if number + 1 < len(self._levels):
            sigma = self._sigma(number + 1)
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            clip = (1 - sigma) * clip + sigma * cast(Tensor, noise)
        return SchedulerOutput(prev_sample=clip) if return_dict else (clip,)

    def _sigma(self, number: int) -> float:
        return self._levels[number] / float(self.config.num_train_timesteps)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)
