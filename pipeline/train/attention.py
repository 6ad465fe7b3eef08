"""Attention of the small Wan while it is trained on a CPU."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor


class PlainAttention:
    """Attention of `WanTransformer3DModel` as products of matrices, in which one key stands for all padding.

    On two CPU cores a step of training took 1.05 s instead of 1.8 s with the fused kernel (16 clips of 320 tokens,
    bfloat16). The padding of Wan's 512 tokens of text is zeros, so that its keys and values are all the same: with
    log(count) added to its score, one of them weighs what `count` would, the same result to rounding for a fifteenth
    of the keys.

    Args:
        padding: tokens that the last one stands for.
    """

    def __init__(self, padding: int = 1) -> None:
        self.padding = padding

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        key = attn.norm_k(attn.to_k(source)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        value = attn.to_v(source).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        if rotary_emb is not None:
            query, key = (_rotated(one, *rotary_emb).to(value.dtype) for one in (query, key))
        scores = (query * query.shape[-1] ** -0.5).to(value.dtype) @ key.to(value.dtype).transpose(-1, -2)
        if self.padding > 1:
            bias = scores.new_zeros(scores.shape[-1])
            bias[-1] = math.log(self.padding)
            scores = scores + bias
        out = (scores.softmax(dim=-1, dtype=value.dtype) @ value).transpose(1, 2).flatten(2, 3)
        return cast(Tensor, attn.to_out[1](attn.to_out[0](out)))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `(batch, heads, tokens, width)` with each pair of numbers turned by its place's angle."""
    cos, sin = cos[..., 0::2].transpose(1, 2), sin[..., 1::2].transpose(1, 2)
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1).flatten(-2)
