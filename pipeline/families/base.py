"""The interface that teacher families share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..animation import ImageAnimationPipeline


@dataclass(frozen=True)
class ImageConditioning:
    """What the U-Net is told of the picture.

    Attributes:
        latents: `(batch, 4, frames, height, width)`, scaled latents of the picture, laid out over
            the frames as the family wants them.
        embedding: `(batch, 1, width)` from the image encoder, where the family has one.
        mask: `(batch, 1, frames, height, width)`, how like the picture each frame is to be, where
            the family has one.
    """

    latents: Tensor
    embedding: Tensor | None = None
    mask: Tensor | None = None

    def of_rows(self, rows: Tensor) -> ImageConditioning:
        """Those of some pictures of the batch, by number."""
        parts = (self.embedding, self.mask)
        return ImageConditioning(self.latents[rows], *(None if part is None else part[rows] for part in parts))

    def dropped(self) -> ImageConditioning:
        """No picture: zeros of the same shapes."""
        return ImageConditioning(
            torch.zeros_like(self.latents),
            None if self.embedding is None else torch.zeros_like(self.embedding),
            None if self.mask is None else torch.zeros_like(self.mask),
        )


@dataclass(frozen=True)
class Conditioning:
    """What the U-Net is told in one guidance branch, or in several stacked along the batch.

    Attributes:
        text: `(batch, tokens, width)`, hidden states of the text encoder.
        image: of the picture.
        fps: `(batch,)`, frames per second of the clip.
        guidance: `(batch, width)`, embedding of the guidance scale, of a U-Net that is told it.
    """

    text: Tensor
    image: ImageConditioning
    fps: Tensor
    guidance: Tensor | None = None

    @staticmethod
    def stack(branches: Sequence[Conditioning]) -> Conditioning:
        """Branches one after the other along the batch."""

        def cat(parts: Sequence[Tensor | None]) -> Tensor | None:
            return None if parts[0] is None else torch.cat([p for p in parts if p is not None])

        latents = torch.cat([b.image.latents for b in branches])
        image = ImageConditioning(
            latents, cat([b.image.embedding for b in branches]), cat([b.image.mask for b in branches])
        )
        fps, guidance = torch.cat([b.fps for b in branches]), cat([b.guidance for b in branches])
        return Conditioning(torch.cat([b.text for b in branches]), image, fps, guidance)

    def of_rows(self, rows: Tensor) -> Conditioning:
        """Those of some clips of the batch, by number."""
        guidance = None if self.guidance is None else self.guidance[rows]
        return Conditioning(self.text[rows], self.image.of_rows(rows), self.fps[rows], guidance)

    def to(self, dtype: torch.dtype) -> Conditioning:
        """The same in another precision; the frame rate stays a whole number."""

        def cast(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.to(dtype)

        image = ImageConditioning(self.image.latents.to(dtype), cast(self.image.embedding), cast(self.image.mask))
        return Conditioning(self.text.to(dtype), image, self.fps, cast(self.guidance))

    def with_image(self, image: ImageConditioning) -> Conditioning:
        return replace(self, image=image)


class TeacherFamily(Protocol):
    """How the checkpoints of one kind are conditioned and called. Holds no state."""

    name: str
    clip_skip: int | None
    """Layers of the text encoder that published checkpoints leave out."""
    default_size: tuple[int, int] | None
    """Height and width in pixels that published checkpoints are used with; None: from the U-Net."""
    noise_before_image: bool
    """Whether the noise is drawn before the picture is encoded (it decides what a seed gives)."""
    guidance_scale: float
    """Scale of the caption that published checkpoints are used with."""
    skips_layers_of_negative: bool
    """Whether `clip_skip` holds for the negative prompt too."""
    steps_by_frame: bool
    """Whether the scheduler is given frames as if they were clips (it decides where noise of a step goes)."""

    def accepts(self, unet: nn.Module) -> bool:
        """Whether this U-Net is one of the family."""
        ...

    def condition_image(
        self,
        pipe: ImageAnimationPipeline,
        images: Sequence[Image],
        frames: int,
        height: int,
        width: int,
        generator: torch.Generator | list[torch.Generator] | None,
        motion_scale: int,
    ) -> ImageConditioning:
        """Encode pictures for the U-Net.

        Args:
            images: RGB pictures of any size; they are cropped to the aspect ratio and scaled.
            height, width: of the clip, in pixels.
            motion_scale: amount and kind of motion, for families that have such a control.
        """
        ...

    def two_branch_negative(self, image: ImageConditioning) -> ImageConditioning:
        """What the negative branch of classic guidance is told of the picture."""
        ...

    def predict(self, unet: nn.Module, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """One call of the U-Net.

        Args:
            latents: `(batch, 4, frames, height, width)`.
            timestep: scalar or `(batch,)`.

        Returns:
            Of the shape of `latents`: noise, v or sample, as the scheduler's `prediction_type` says.
        """
        ...
