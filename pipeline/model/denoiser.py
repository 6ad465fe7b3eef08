"""What the denoising loop calls at each step; optimisations put their own in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ..errors import ModelError, first_line

if TYPE_CHECKING:
    from .animation import ImageAnimationPipeline
    from .families import Cond

Predict = Callable[[Tensor, Tensor], Tensor]
"""`(latents, timestep) -> prediction`: latents `(batch, channels, frames, height, width)`, with all guidance branches
along the batch where the family stacks them, a scalar timestep, and a prediction of the latents' shape."""


class Denoiser(Protocol):
    """Turns the conditions of one request into its prediction function."""

    def start(self, cond: Cond) -> Predict:
        """Begin a request. All that does not change from step to step is computed here, once."""
        ...


class PlainDenoiser:
    """The network as diffusers has it: everything is computed anew at each step."""

    def __init__(self, pipe: ImageAnimationPipeline) -> None:
        self._pipe = pipe

    def start(self, cond: Cond) -> Predict:
        pipe = self._pipe
        family, parts = pipe.family, pipe.parts

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            network = getattr(pipe, family.network_at(parts, timestep))
            return family.predict(network, latents, timestep, cond)

        return predict


def evaluations(scheduler: Any, steps: int) -> int:
    """Return how many times each guidance branch is predicted in `steps` steps of a scheduler.

    As many as steps for most; solvers that look at two places in a step (Heun, KDPM2), or at several to begin with
    (PNDM), take more.

    Raises:
        ModelError: the scheduler cannot be set to so many steps.
    """
    scheduler = copy.deepcopy(scheduler)  # what it was set to stays
    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    try:
        scheduler.set_timesteps(steps, **shift)
    except Exception as error:  # of diffusers, whose kinds are many
        raise ModelError(
            f"scheduler: {type(scheduler).__name__} cannot be set to {steps} steps: {first_line(error)}"
        ) from error
    return len(scheduler.timesteps)
