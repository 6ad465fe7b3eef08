"""Cross-attention that projects a clip's context once: the same numbers, for less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import I2VGenXLUNet, UNet3DConditionModel, UNetMotionModel, UNetSpatioTemporalConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.optimise.base import NotApplicable
from pipeline.optimise.context import ClipAttnProcessor, cross_attentions, fold_context

from .conftest import SPOILT_ATTENTION, wake

CLIPS, FRAMES, TOKENS, WIDTH = 2, 3, 5, 32
SIDE = 6  # of latents
LEVELS = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": WIDTH,
    "sample_size": 8,
}
BLOCKS_3D = {
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "attention_head_dim": 4,
}


@dataclass(frozen=True)
class Model:
    """A U-Net, a call of it with clips that differ in all they are told, and how many tokens its context has."""

    unet: nn.Module
    call: Callable[[], Tensor]
    tokens: int


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def i2vgen_xl() -> Model:
    unet = I2VGenXLUNet(**LEVELS, **BLOCKS_3D)
    arguments = {
        "timestep": torch.tensor([7, 500]),
        "fps": torch.tensor([4, 16]),
        "image_latents": noise(CLIPS, 4, FRAMES, SIDE, SIDE, seed=1),
        "image_embeddings": noise(CLIPS, 1, WIDTH, seed=2),
        "encoder_hidden_states": noise(CLIPS, TOKENS, WIDTH, seed=3),
    }
    sample = noise(CLIPS, 4, FRAMES, SIDE, SIDE)
    # Text, 8 x 8 places of the picture and 4 tokens of its embedding.
    return Model(unet, lambda: unet(sample, **arguments).sample, TOKENS + 64 + 4)


def motion() -> Model:
    unet = UNetMotionModel(
        **LEVELS,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        num_attention_heads=2,
        motion_num_attention_heads=2,
    )
    context = noise(CLIPS, TOKENS, WIDTH, seed=1).repeat_interleave(FRAMES, dim=0)
    sample = noise(CLIPS, 4, FRAMES, SIDE, SIDE)
    # By name, as some callers give it.
    return Model(unet, lambda: unet(sample=sample, timestep=500, encoder_hidden_states=context).sample, TOKENS)


def condition_3d() -> Model:
    unet = UNet3DConditionModel(**LEVELS, **BLOCKS_3D)
    context = noise(CLIPS, TOKENS, WIDTH, seed=1)
    sample = noise(CLIPS, 4, FRAMES, SIDE, SIDE)
    return Model(unet, lambda: unet(sample, 500, encoder_hidden_states=context).sample, TOKENS)


def spatio_temporal() -> Model:
    unet = UNetSpatioTemporalConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),  # its group norms have 32 groups
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=(2, 4),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    context, ids = noise(CLIPS, 1, WIDTH, seed=1), noise(CLIPS, 3, seed=2)
    sample = noise(CLIPS, FRAMES, 8, SIDE, SIDE)
    return Model(unet, lambda: unet(sample, 500, encoder_hidden_states=context, added_time_ids=ids).sample, 1)


MODELS = {"i2vgen-xl": i2vgen_xl, "motion": motion, "3d": condition_3d, "spatio-temporal": spatio_temporal}


@pytest.fixture(params=MODELS)
def model(request) -> Model:
    """A U-Net of each kind in turn, none of its layers silent."""
    torch.manual_seed(0)
    made = MODELS[request.param]()
    wake(made.unet.eval().requires_grad_(requires_grad=False))
    return made


def traces(unet: nn.Module) -> list[Any]:
    """What folding could leave behind."""
    return [
        (name, len(m._forward_pre_hooks), len(m._forward_hooks), id(getattr(m, "processor", None)))
        for name, m in unet.named_modules()
    ]


def flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_the_prediction_is_the_same_and_undo_gives_back_the_model_bit_by_bit(model):
    before, plain = traces(model.unet), model.call()
    change = fold_context(model.unet)
    assert all(isinstance(attn.processor, ClipAttnProcessor) for attn in cross_attentions(model.unet).values())
    assert float((model.call() - plain).abs().max()) < 1e-5
    change.undo()
    assert traces(model.unet) == before
    assert torch.equal(model.call(), plain)


def test_it_is_each_clips_own_context_that_is_seen(model):
    """The clips of a batch would come out alike if one context stood for all."""
    change = fold_context(model.unet)
    layers = list(cross_attentions(model.unet).values())
    seen = []
    hooks = [layer.to_v.register_forward_hook(lambda _m, args, _o: seen.append(args[0])) for layer in layers]
    model.call()
    for hook in hooks:
        hook.remove()
    change.undo()
    assert len(seen) == len(layers)
    for context in seen:
        assert context.shape == (CLIPS, model.tokens, WIDTH)
        assert not torch.allclose(context[0], context[1])


def test_the_projections_of_all_frames_but_one_are_saved(model):
    """Two numbers less a weight and token that is not projected; attention itself costs as much as before."""
    layers = cross_attentions(model.unet).values()
    weights = sum(layer.to_k.weight.numel() + layer.to_v.weight.numel() for layer in layers)
    plain = flops(model.call)
    change = fold_context(model.unet)
    folded = flops(model.call)
    change.undo()
    if model.tokens > 1:
        assert plain - folded == 2 * weights * CLIPS * (FRAMES - 1) * model.tokens
    else:  # queries and the attention over one token are saved too
        assert plain - folded > 2 * weights * CLIPS * (FRAMES - 1)


def test_a_layer_without_context_or_outside_a_call_works_as_ever():
    attn = Attention(8, heads=2, dim_head=4, cross_attention_dim=8).eval()
    hidden = noise(4, 3, 8)
    plain = attn(hidden)
    layer = nn.ModuleDict({"attn": attn})
    change = fold_context(layer)
    assert torch.equal(attn(hidden), plain)
    with_context = attn(hidden, encoder_hidden_states=noise(4, 2, 8, seed=1))
    change.undo()
    assert torch.equal(attn(hidden, encoder_hidden_states=noise(4, 2, 8, seed=1)), with_context)


@dataclass
class Count:
    clips: int | None


@given(
    clips=st.integers(1, 3),
    frames=st.integers(1, 4),
    places=st.integers(1, 9),
    tokens=st.integers(1, 6),
    heads=st.integers(1, 3),
    once=st.booleans(),
    options=st.sampled_from(
        [
            {},
            {"bias": True, "out_bias": False},
            {"cross_attention_norm": "layer_norm"},
            {"qk_norm": "layer_norm"},
            {"residual_connection": True, "rescale_output_factor": 2.0},
        ]
    ),
)
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_a_single_layer_gives_the_same_for_all_shapes(clips, frames, places, tokens, heads, once, options):
    torch.manual_seed(0)
    attn = Attention(4 * heads, heads=heads, dim_head=4, cross_attention_dim=6, **options).eval()
    hidden, context = torch.randn(clips * frames, places, 4 * heads), torch.randn(clips, tokens, 6)
    repeated = context.repeat_interleave(frames, dim=0)
    plain = AttnProcessor2_0()(attn, hidden, repeated)
    folded = ClipAttnProcessor(Count(clips), AttnProcessor2_0())(attn, hidden, context if once else repeated)
    assert torch.allclose(folded, plain, atol=1e-5)


@pytest.mark.parametrize(("spoil", "reason"), SPOILT_ATTENTION)
def test_a_layer_that_works_in_another_way_is_named_and_nothing_is_changed(spoil, reason):
    unet = nn.ModuleDict({name: Attention(8, heads=2, dim_head=4, cross_attention_dim=8) for name in ("one", "two")})
    spoil(unet["two"])
    before = traces(unet)
    with pytest.raises(NotApplicable, match=f"^context: two has {reason}"):
        fold_context(unet)
    assert traces(unet) == before


def test_a_model_without_cross_attention_is_refused_by_name():
    with pytest.raises(NotApplicable, match=r"^context: Linear has no cross-attention of single frames$"):
        fold_context(nn.Linear(2, 2))


def test_it_is_not_put_in_place_twice():
    unet = nn.ModuleDict({"attn": Attention(8, heads=2, dim_head=4, cross_attention_dim=8)})
    change = fold_context(unet)
    before = traces(unet)
    with pytest.raises(NotApplicable, match=r"^context: attn has it already$"):
        fold_context(unet)
    assert traces(unet) == before
    change.undo()
