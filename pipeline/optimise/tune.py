"""What a GPU gains by beside the runtime: the layout of its memory, and attention chosen by shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .attention import attention_shapes, choose_attention, measure_attention
from .base import Change, NotApplicable
from .layout import channels_last
from .runtimes import example_of, prepared_denoiser

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline


@torch.no_grad()
def attention(pipe: ImageAnimationPipeline, *, compiled: bool = False) -> Change:
    """Let every attention layer compute by the back end that is fastest here for its shape in a default request.

    Args:
        compiled: for programs that are compiled, see `measure_attention`.

    Raises:
        NotApplicable: `prepare_once` is not in place, or attention works in another way than diffusers' plain one.
    """
    example = example_of(pipe)
    step = prepared_denoiser(pipe).module
    shapes = attention_shapes(pipe.network, lambda: step(*example.inputs))
    return choose_attention(pipe.network, measure_attention(shapes, pipe.device, pipe.network.dtype, compiled=compiled))


def tune(pipe: ImageAnimationPipeline, *, compiled: bool = False) -> list[Change]:
    """Layout and attention for a GPU, once `prepare_once` is in place; to be undone in reverse.

    On a processor, which gains nothing by them, nothing is changed.

    Args:
        compiled: as `attention` has it.

    Raises:
        NotApplicable: as `channels_last` and `attention`.
    """
    if pipe.device.type != "cuda":
        return []
    layout = channels_last(pipe.network)
    try:
        return [layout, attention(pipe, compiled=compiled)]
    except NotApplicable:
        layout.undo()
        raise
