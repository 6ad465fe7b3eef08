"""What the denoising loop calls at each step; optimisations put their own in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from .families import Conditioning

if TYPE_CHECKING:
    from .animation import ImageAnimationPipeline

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
