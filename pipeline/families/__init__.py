"""Teacher families: how a checkpoint's U-Net is conditioned and called.

Each family is one small object behind `TeacherFamily`; everything else in the pipeline is shared.

- `base`: the interface, and `Conditioning`, what one guidance branch is told.
- `i2vgen_xl`: `I2VGenXLUNet` checkpoints (Zhang et al. 2023, "I2VGen-XL").
- `pia`: `UNetMotionModel` checkpoints with image channels (Zhang et al. 2023, "PIA").
- `guided`: U-Nets of both that are told the guidance scale (Meng et al. 2023, section 3.1).
"""

from __future__ import annotations

from torch import nn

from .base import Conditioning, ImageConditioning, TeacherFamily
from .guided import check_guided, guidance_embedding, guidance_width
from .i2vgen_xl import I2VGenXLFamily
from .pia import PIAFamily

FAMILIES: tuple[TeacherFamily, ...] = (I2VGenXLFamily(), PIAFamily())


def family_of(unet: nn.Module) -> TeacherFamily:
    """The family that a U-Net belongs to.

    Raises:
        ValueError: no family knows this class or its number of input channels.
    """
    for family in FAMILIES:
        if family.accepts(unet):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    channels = getattr(getattr(unet, "config", None), "in_channels", "?")
    raise ValueError(
        f"unet: {type(unet).__name__} with {channels} input channels belongs to no teacher family; known: {known}"
    )


__all__ = [
    "FAMILIES",
    "Conditioning",
    "I2VGenXLFamily",
    "ImageConditioning",
    "PIAFamily",
    "TeacherFamily",
    "check_guided",
    "family_of",
    "guidance_embedding",
    "guidance_width",
]
