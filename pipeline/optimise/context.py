"""Cross-attention that projects a clip's context once, not once for each frame.

diffusers' video U-Nets repeat the context (text and image tokens) for every frame before
cross-attention projects it to keys and values, so that the same projection is computed as many times
as there are frames. The article's remedy is to repeat after the projection. Here nothing is repeated
at all: the positions of all frames of a clip become one long row of queries against one context::

    (batch * frames, positions, channels)  ->  (batch, frames * positions, channels)

which gives the same numbers, since each query attends alone. A context of one token (Stable Video
Diffusion) has nothing to weigh: attention over it is its value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from .base import Change, NotApplicable

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of queries `(batch, heads, queries, head_dim)` to keys and values `(batch, heads, keys, head_dim)`."""


class ClipCount(Protocol):
    """How many clips are in the batch of the call that is under way."""

    clips: int | None


class _Clips:
    """Kept by a hook on the U-Net, since the repeated context alone does not tell."""

    def __init__(self) -> None:
        self.clips: int | None = None

    def see(self, _unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample"]
        self.clips = sample.shape[0]


class ClipAttnProcessor:
    """Cross-attention with one context a clip.

    Attributes:
        keys_values: `(batch, heads, tokens, head_dim)` each. Where they are set the context of the
            call is not looked at: they stand for it (`pipeline.optimise.prepared`).
        attend: what computes attention (`pipeline.optimise.attention` chooses).
    """

    def __init__(self, count: ClipCount, plain: Any) -> None:
        self.count, self.plain = count, plain
        self.keys_values: tuple[Tensor, Tensor] | None = None
        self.attend: Attend = F.scaled_dot_product_attention

    def project(self, attn: Attention, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, `(batch, heads, tokens, head_dim)` each, of a context `(batch, tokens, width)`."""
        if attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        keys, values = (
            layer(context).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in (attn.to_k, attn.to_v)
        )
        return keys if attn.norm_k is None else attn.norm_k(keys), values

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # (batch * frames, positions, channels), or frames and positions the other way round
        encoder_hidden_states: Tensor | None = None,  # (batch * frames, tokens, width) or (batch, tokens, width)
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if self.keys_values is not None:
            keys, values = self.keys_values
        elif encoder_hidden_states is None or attention_mask is not None or self.count.clips is None:
            return cast(Tensor, self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs))
        else:
            repeats = encoder_hidden_states.shape[0] // self.count.clips
            keys, values = self.project(attn, encoder_hidden_states[::repeats])
        batch, heads, tokens, _ = keys.shape
        rows, positions, _ = hidden_states.shape
        if tokens == 1:
            attended = values.transpose(1, 2).flatten(2)  # (batch, 1, channels)
            out = attn.to_out[1](attn.to_out[0](attended))
            hidden = out.repeat_interleave(rows // batch, dim=0).expand(-1, positions, -1)
        else:
            query = attn.to_q(hidden_states).view(batch, rows // batch * positions, heads, -1).transpose(1, 2)
            if attn.norm_q is not None:
                query = attn.norm_q(query)
            attended = self.attend(query, keys, values)  # (batch, heads, frames * positions, head_dim)
            attended = attended.transpose(1, 2).reshape(rows, positions, -1)
            hidden = attn.to_out[1](attn.to_out[0](attended))
        if attn.residual_connection:
            hidden = hidden + hidden_states
        return cast(Tensor, hidden / attn.rescale_output_factor)


def cross_attentions(unet: nn.Module) -> dict[str, Attention]:
    """Attention layers that look at the context, by their path in the U-Net, in its order."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
    }


def fold_context(unet: nn.Module) -> Change:
    """Make every cross-attention of a video U-Net project its context once a clip.

    Works on diffusers' `I2VGenXLUNet`, `UNetMotionModel`, `UNet3DConditionModel` and
    `UNetSpatioTemporalConditionModel`.

    The context has to be the same for all frames of a clip, as it is in these U-Nets' own pipelines:
    of a context that changes from frame to frame only the first frame's is seen.
    """
    layers = cross_attentions(unet)
    if not layers:
        raise NotApplicable(f"context: {type(unet).__name__} has no cross-attention of single frames")
    for name, attn in layers.items():
        _check(name, attn)
    count = _Clips()
    hook = unet.register_forward_pre_hook(count.see, with_kwargs=True)
    plain = {name: attn.processor for name, attn in layers.items()}
    for attn in layers.values():
        attn.set_processor(ClipAttnProcessor(count, attn.processor))

    def undo() -> None:
        hook.remove()
        for name, attn in layers.items():
            attn.set_processor(plain[name])

    return Change("context", f"{len(layers)} cross-attention layers project a clip's context once", undo)


def _check(name: str, attn: Attention) -> None:
    if isinstance(attn.processor, ClipAttnProcessor):
        raise NotApplicable(f"context: {name} has it already")
    check_plain("context", name, attn)


def check_plain(change: str, name: str, attn: Attention) -> None:
    """Refuse a layer whose way of working is not the one that is replaced."""
    if type(attn.processor) not in (AttnProcessor, AttnProcessor2_0):
        raise NotApplicable(f"{change}: {name} has a processor of its own ({type(attn.processor).__name__})")
    for what in ("spatial_norm", "group_norm", "added_kv_proj_dim"):
        if getattr(attn, what, None) is not None:
            raise NotApplicable(f"{change}: {name} has {what}, which is not supported")
    if not attn.scale_qk:
        raise NotApplicable(f"{change}: {name} has queries that are not scaled, which is not supported")
