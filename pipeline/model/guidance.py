"""Guidance: how the predictions of the branches become one.

With an image scale there are three branches, as in InstructPix2Pix (Brooks et al. 2023, eq. 3)::

    eps = eps_uncond + g_image * (eps_image - eps_uncond) + g_text * (eps_full - eps_image)

Without one there are the two of classifier-free guidance (Ho & Salimans 2022, eq. 6)::

    eps = eps_negative + g_text * (eps_full - eps_negative)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from torch import Tensor


def is_number(value: Any) -> bool:
    """Return whether a caller gave a number, of Python's or NumPy's, and not text or a list."""
    return isinstance(value, Real)


@dataclass(frozen=True)
class Guidance:
    """Scales of the guidance branches.

    Attributes:
        text: scale of the caption.
        image: scale of the picture, or None for classic guidance with two branches.
    """

    text: float
    image: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("guidance_scale", self.text), ("image_guidance_scale", self.image)):
            if value is not None and not (is_number(value) and 0 <= value <= 100):
                raise ValueError(f"{name}: {value} is outside 0 to 100")

    @property
    def weights(self) -> tuple[tuple[str, float], ...]:
        """Branches that count, in order, each with its weight in the sum; the weights sum to 1.

        A branch of weight 0 is left out, so that scales of 1 cost one pass a step and not three.
        """
        every: tuple[tuple[str, float], ...]
        if self.image is None:
            # diffusers' pipelines guide only above 1; below, the full branch stands alone.
            text = max(1.0, self.text)
            every = (("negative", 1 - text), ("full", text))
        else:
            every = (("uncond", 1 - self.image), ("image", self.image - self.text), ("full", self.text))
        return tuple((name, weight) for name, weight in every if weight != 0)

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of those that count, in order."""
        return tuple(name for name, _ in self.weights)

    @property
    def passes(self) -> int:
        """Passes of the network a step."""
        return len(self.weights)

    def combine(self, predictions: Tensor) -> Tensor:
        """Weighted sum of the branches.

        Args:
            predictions: `(passes * batch, ...)`, the branches of `weights` one after the other.

        Returns:
            `(batch, ...)`.
        """
        parts = predictions.chunk(self.passes)
        if self.passes == 1:
            return parts[0]
        if self.image is None:
            # Written as diffusers writes it, so that rounding is the same.
            negative, full = parts
            return negative + self.text * (full - negative)
        total = parts[0] * self.weights[0][1]
        for part, (_, weight) in zip(parts[1:], self.weights[1:], strict=True):
            total = total + part * weight
        return total


@dataclass(frozen=True, eq=False)
class ClipGuidance:
    """`Guidance` with a text scale of its own for each clip of a batch.

    All clips have the same branches, also where the weight of one is 0 for some of them.

    Attributes:
        text: scales of the caption, `(batch,)`, or of latents' five dimensions where they differ between frames.
        image: scale of the picture, or None for classic guidance with two branches.
    """

    text: Tensor
    image: float | None = None

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches, in order."""
        if self.image is None:
            return ("negative", "full")
        return ("image", "full") if self.image == 1 else ("uncond", "image", "full")

    @property
    def passes(self) -> int:
        """Passes of the network a step."""
        return len(self.branches)

    def combine(self, predictions: Tensor) -> Tensor:
        """Weighted sum of the branches, clip by clip; as `Guidance.combine`."""
        parts = dict(zip(self.branches, predictions.chunk(self.passes), strict=True))
        text = self.text.to(predictions)
        if text.dim() == 1:
            text = text.view(-1, *[1] * (predictions.dim() - 1))
        if self.image is None:
            return parts["negative"] + text.clamp(min=1) * (parts["full"] - parts["negative"])
        start = parts["image"]
        if "uncond" in parts:
            start = parts["uncond"] + self.image * (start - parts["uncond"])
        return start + text * (parts["full"] - parts["image"])


AnyGuidance = Guidance | ClipGuidance


def in_stages(guidance: Guidance, scales: Sequence[float | Tensor]) -> list[AnyGuidance]:
    """Return the guidance of each network of a checkpoint, with scales of the caption of their own.

    Args:
        scales: of each network; a tensor where they differ between frames.
    """
    return [
        ClipGuidance(scale, guidance.image) if isinstance(scale, Tensor) else replace(guidance, text=scale)
        for scale in scales
    ]


def all_branches(stages: Sequence[AnyGuidance]) -> tuple[str, ...]:
    """Return the branches of any of the stages, in their order."""
    found = {name for stage in stages for name in stage.branches}
    return tuple(name for name in ("uncond", "negative", "image", "full") if name in found)


def guidance_for(config: Any, text: float | None, image: float | None) -> tuple[Guidance, float | None]:
    """Return how a pipeline is guided, and the scale that its U-Net is told, if it is told one.

    Args:
        config: of the pipeline.
        text: scale of the caption; None is the pipeline's own.
        image: scale of the picture, or None for classic guidance with two branches.

    Raises:
        ValueError: a scale is out of its range, or the model has its scales in its weights; the text begins with
            `guidance_scale` or `image_guidance_scale`.
    """
    if config.guidance_range is None:
        if config.distilled_guidance_scale is not None:
            for name, given in (("guidance_scale", text), ("image_guidance_scale", image)):
                if given not in {None, 1.0}:
                    raise ValueError(
                        f"{name}: {given:g} cannot be chosen: this student has its guidance in its weights, and more "
                        "on top of it would count twice; leave it out"
                    )
        return Guidance(config.guidance_scale if text is None else text, image), None
    if image not in {None, 1.0}:
        raise ValueError(f"image_guidance_scale: {image} is not 1, and this model has its own in its weights")
    scale: float = config.distilled_guidance_scale if text is None else text
    least, most = config.guidance_range
    if not least <= scale <= most:
        raise ValueError(f"guidance_scale: {scale:g} is outside {least:g} to {most:g}, which this model was made for")
    return Guidance(1.0, 1.0), scale
