"""Guidance as an input: a U-Net that is told the scale of the caption (Meng et al. 2023, section 3.1).

The scale is embedded as a timestep is, and a linear layer adds it to the embedding of the timestep
before that goes through its own layers. The layer begins at zero: a U-Net that is given it predicts
what it predicted before, whatever the scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import I2VGenXLUNet, ModelMixin, UNetMotionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

GUIDANCE_WIDTH = 256
"""Of the embedding; that of published latent consistency models (Luo et al. 2023)."""

GUIDANCE_WEIGHTS = "time_embedding.cond_proj.weight"
"""Of a U-Net, the weights that a plain one has not."""


def guidance_embedding(scale: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of the scale at `dim / 2` frequencies from 1000 down to a tenth, as Kingma et al.
    2021 ("VDM") have them for timesteps and Luo et al. 2023 for guidance.

    Args:
        scale: `(batch,)`, of the caption.

    Returns:
        `(batch, dim)`, float32.
    """
    half = dim // 2
    places = torch.arange(half, dtype=torch.float32, device=scale.device)
    frequencies = 1000 * torch.exp(-math.log(10_000) / max(1, half - 1) * places)
    angles = scale.float()[:, None] * frequencies  # (batch, half)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))


def guidance_width(unet: nn.Module) -> int | None:
    """Width of the embedding that a U-Net takes; None where it takes none."""
    config: Any = getattr(unet, "config", {})
    return cast("int | None", config.get("time_cond_proj_dim"))


def check_guided(unet: nn.Module, limits: Sequence[float], default: float | None) -> None:
    """Refuse limits within which a U-Net cannot be told scales, or that leave out the one it is told by default.

    Raises:
        ValueError: with what does not fit.
    """
    if guidance_width(unet) is None:
        raise ValueError(f"guidance_range: {type(unet).__name__} is not told a guidance scale (no time_cond_proj_dim)")
    if len(limits) != 2 or not 0 <= limits[0] < limits[1] <= 100:
        raise ValueError(f"guidance_range: {list(limits)} is not a least and a most scale within 0 to 100")
    if default is None or not limits[0] <= default <= limits[1]:
        raise ValueError(f"guidance_range: {list(limits)} leaves out distilled_guidance_scale, {default}")


class GuidedI2VGenXLUNet(I2VGenXLUNet):  # type: ignore[misc]  # diffusers is untyped
    """`I2VGenXLUNet` whose `timestep_cond`, `(batch, time_cond_proj_dim)`, is of use.

    diffusers' class takes that argument, and has no layer for it. `UNetMotionModel` has one.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock3D",) * 3, "DownBlock3D"),
        up_block_types: tuple[str, ...] = ("UpBlock3D", *("CrossAttnUpBlock3D",) * 3),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        norm_num_groups: int | None = 32,
        cross_attention_dim: int = 1024,
        attention_head_dim: int | tuple[int] = 64,
        num_attention_heads: int | tuple[int] | None = None,
        time_cond_proj_dim: int = GUIDANCE_WIDTH,
    ) -> None:
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
        )
        self.time_embedding.cond_proj = nn.Linear(time_cond_proj_dim, block_out_channels[0], bias=False)
        nn.init.zeros_(self.time_embedding.cond_proj.weight)


_GUIDED: dict[type[nn.Module], type[nn.Module]] = {
    I2VGenXLUNet: GuidedI2VGenXLUNet,
    UNetMotionModel: UNetMotionModel,
}


def guided_unet(unet: ModelMixin) -> nn.Module:
    """Return a copy in float32 that is told the guidance scale, and does not heed it yet where the original did not.

    Raises:
        ValueError: for this class it is not known how.
    """
    kind: Any = next((guided for plain, guided in _GUIDED.items() if isinstance(unet, plain)), None)
    if kind is None:
        raise ValueError(f"unet: {type(unet).__name__} cannot be told a guidance scale")
    config = {**unet.config, "time_cond_proj_dim": guidance_width(unet) or GUIDANCE_WIDTH}
    config.pop("_use_default_values", None)  # diffusers would ignore what is listed there, the width too
    with torch.random.fork_rng(devices=[]):  # of weights that are replaced
        guided: nn.Module = kind.from_config({**config, "_class_name": kind.__name__})
        nn.init.zeros_(guided.get_parameter(GUIDANCE_WEIGHTS))
    own = {GUIDANCE_WEIGHTS: guided.get_parameter(GUIDANCE_WEIGHTS).detach()}
    guided.load_state_dict({**own, **unet.state_dict()})
    return guided.to(next(unet.parameters()).device).train(unet.training)
