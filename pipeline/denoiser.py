"""What the denoising loop calls at each step; optimisations put their own in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from .errors import ModelError

if TYPE_CHECKING:
    from .animation import ImageAnimationPipeline
    from .families import Conditioning

Predict = Callable[[Tensor, Tensor], Tensor]
"""`(latents, timestep) -> prediction`: latents `(batch, 4, frames, height, width)` with all guidance
branches stacked along the batch, a scalar timestep, and a prediction of the latents' shape."""


class Denoiser(Protocol):
    """Turns the conditions of one request into its prediction function."""

    def start(self, conditioning: Conditioning) -> Predict:
        """Begin a request. All that does not change from step to step is computed here, once."""
        ...


class PlainDenoiser:
    """The U-Net as diffusers has it: everything is computed anew at each step."""

    def __init__(self, pipe: ImageAnimationPipeline) -> None:
        self._pipe = pipe

    def start(self, conditioning: Conditioning) -> Predict:
        pipe = self._pipe
        return lambda latents, timestep: pipe.family.predict(pipe.unet, latents, timestep, conditioning)


def evaluations(scheduler: Any, steps: int) -> int:
    """How many times each guidance branch is predicted in `steps` steps of a scheduler.

    As many as steps for most; solvers that look at two places in a step (Heun, KDPM2), or at several to begin with
    (PNDM), take more.

    Raises:
        ModelError: the scheduler cannot be set to so many steps.
    """
    scheduler = copy.deepcopy(scheduler)  # what it was set to stays
    try:
        scheduler.set_timesteps(steps)
    except Exception as error:  # of diffusers, whose kinds are many
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"scheduler: {type(scheduler).__name__} cannot be set to {steps} steps: {reason}") from error
    return len(scheduler.timesteps)
