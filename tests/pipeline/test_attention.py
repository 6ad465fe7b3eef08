"""Attention by a back end chosen for each shape: the same numbers by each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import I2VGenXLUNet, UNet3DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.optimise.attention import (
    AttentionShape,
    ChosenAttnProcessor,
    attend,
    attention_shapes,
    choose_attention,
    measure_attention,
    time_backends,
)
from pipeline.optimise.base import NotApplicable
from pipeline.optimise.context import ClipAttnProcessor, cross_attentions, fold_context
from pipeline.optimise.prepared import prepare_once
from pipeline.optimise.runtimes import example_of, trace

from .conftest import SPOILT_ATTENTION, wake

CLIPS, FRAMES, TOKENS, WIDTH, SIDE = 2, 3, 5, 32, 6
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
ON_CPU = ("flash", "math", "tiny")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Model:
    unet: nn.Module
    call: Callable[[], Tensor]


def i2vgen_xl() -> Model:
    unet = I2VGenXLUNet(**LEVELS, **BLOCKS_3D)
    arguments = {
        "timestep": torch.tensor([7, 500]),
        "fps": torch.tensor([4, 16]),
        "image_latents": noise(CLIPS, 4, FRAMES, SIDE, SIDE, seed=1),
        "image_embeddings": noise(CLIPS, 1, WIDTH, seed=2),
        "encoder_hidden_states": noise(CLIPS, TOKENS, WIDTH, seed=3),
    }
    return Model(unet, lambda: unet(noise(CLIPS, 4, FRAMES, SIDE, SIDE), **arguments).sample)


def condition_3d() -> Model:
    unet = UNet3DConditionModel(**LEVELS, **BLOCKS_3D)
    context = noise(CLIPS, TOKENS, WIDTH, seed=1)
    return Model(unet, lambda: unet(noise(CLIPS, 4, FRAMES, SIDE, SIDE), 500, encoder_hidden_states=context).sample)


def motion() -> Model:
    unet = UNetMotionModel(
        **LEVELS,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        num_attention_heads=2,
        motion_num_attention_heads=2,
    )
    context = noise(CLIPS, TOKENS, WIDTH, seed=1).repeat_interleave(FRAMES, dim=0)
    return Model(unet, lambda: unet(noise(CLIPS, 4, FRAMES, SIDE, SIDE), 500, encoder_hidden_states=context).sample)


MODELS = {"i2vgen-xl": i2vgen_xl, "3d": condition_3d, "motion": motion}


@pytest.fixture(params=MODELS)
def model(request) -> Model:
    """A U-Net of each kind in turn, none of its layers silent."""
    torch.manual_seed(0)
    made = MODELS[request.param]()
    wake(made.unet.eval().requires_grad_(requires_grad=False))
    return made


def traces(unet: nn.Module) -> list[Any]:
    """What the change could leave behind."""
    processors = [(name, getattr(m, "processor", None)) for name, m in unet.named_modules()]
    return [(name, id(p), getattr(p, "attend", None)) for name, p in processors] + list(unet.state_dict())


def layers_of(unet: nn.Module) -> dict[str, Attention]:
    return {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}


@pytest.mark.parametrize("folded", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_the_prediction_is_the_same_by_each_back_end_and_undo_gives_it_back_bit_by_bit(model, backend, folded):
    fold = fold_context(model.unet) if folded else None
    before, plain = traces(model.unet), model.call()
    shapes = attention_shapes(model.unet, model.call)
    assert traces(model.unet) == before
    change = choose_attention(model.unet, dict.fromkeys(shapes, backend))
    assert float((model.call() - plain).abs().max()) < 1e-5
    change.undo()
    assert traces(model.unet) == before
    assert torch.equal(model.call(), plain)
    if fold is not None:
        fold.undo()


def test_shapes_are_those_of_the_real_call_each_once():
    made = i2vgen_xl()
    change = fold_context(made.unet)
    shapes = attention_shapes(made.unet, made.call)
    change.undo()
    assert len(set(shapes)) == len(shapes)
    places, context = SIDE * SIDE, TOKENS + 64 + 4
    assert AttentionShape(CLIPS * FRAMES, 2, places, places, 4) in shapes  # over places
    assert AttentionShape(CLIPS, 2, FRAMES * places, context, 4) in shapes  # the folded context
    assert AttentionShape(CLIPS * places, 2, FRAMES, FRAMES, 4) in shapes  # over time


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_each_shape_gets_its_own_back_end_whatever_the_batch():
    unet = nn.ModuleDict({"attn": Attention(8, heads=2, dim_head=4).eval()})
    shape = AttentionShape(7, 2, 3, 3, 4)
    change = choose_attention(unet, {shape: "tiny"})
    names = {}
    for length in (3, 4):
        with torch.no_grad(), Operations() as operations:
            unet["attn"](noise(2, length, 8))
        names[length] = operations.names
    change.undo()
    assert "aten::_softmax" in names[3]
    assert not any("scaled_dot_product" in name for name in names[3])
    assert any("scaled_dot_product" in name for name in names[4])


@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.integers(1, 17),
    keys=st.integers(1, 17),
    head_dim=st.sampled_from([4, 8]),
    backend=st.sampled_from(ON_CPU),
)
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_a_back_end_gives_what_pytorch_gives_for_all_shapes(batch, heads, queries, keys, head_dim, backend):
    query, key, value = (
        noise(batch, length, heads, head_dim, seed=seed).transpose(1, 2)
        for seed, length in enumerate((queries, keys, keys))
    )
    plain = F.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(attend(query, key, value, backend), plain, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"cross_attention_dim": 6, "cross_attention_norm": "layer_norm"},
        {"qk_norm": "layer_norm", "bias": True},
        {"residual_connection": True, "rescale_output_factor": 2.0},
    ],
    ids=["cross", "norm", "residual"],
)
@torch.no_grad()
def test_layers_of_all_kinds_give_the_same(options):
    torch.manual_seed(0)
    attn = Attention(8, heads=2, dim_head=4, **options).eval()
    context = noise(3, 4, 6) if "cross_attention_dim" in options else None
    images, hidden, mask = noise(3, 8, 2, 2), noise(3, 5, 8), torch.zeros(3, 1, 5)
    calls = [lambda: attn(hidden, encoder_hidden_states=context)]
    if context is None:
        calls += [lambda: attn(images), lambda: attn(hidden, attention_mask=mask)]
    plain = [call() for call in calls]
    change = choose_attention(nn.ModuleDict({"attn": attn}))
    assert isinstance(attn.processor, ChosenAttnProcessor)
    for call, expected in zip(calls, plain, strict=True):
        assert torch.allclose(call(), expected, atol=1e-6)
    change.undo()
    assert type(attn.processor) is AttnProcessor2_0


def test_what_is_measured_is_the_fastest_of_those_that_take_the_shape():
    shape = AttentionShape(8, 2, 4, 4, 8)
    took = time_backends(shape, "cpu", torch.float32, repeats=1)
    assert set(took) == set(ON_CPU)  # the others are for GPUs
    assert all(seconds > 0 for seconds in took.values())
    chosen = measure_attention([shape], "cpu", torch.float32, repeats=1)
    assert set(chosen) == {shape}
    assert chosen[shape] in ON_CPU


@pytest.mark.parametrize("backend", ["cudnn", "efficient"])
def test_a_back_end_that_is_not_there_says_so(backend):
    query = noise(1, 2, 4, 8)
    with pytest.raises(RuntimeError, match="scaled_dot_product"):
        attend(query, query, query, backend)


def test_long_rows_are_not_spelt_out():
    assert "tiny" not in time_backends(AttentionShape(1, 1, 65, 64, 8), "cpu", torch.float32, repeats=1)


@torch.no_grad()
def test_an_exported_or_traced_step_keeps_the_choice_and_works_on_the_models_weights_alone(one_level_i2vgen):
    prepared = prepare_once(one_level_i2vgen)
    example = example_of(one_level_i2vgen)
    module = one_level_i2vgen.denoiser.module
    plain = module(*example.inputs)
    shapes = attention_shapes(one_level_i2vgen.unet, lambda: module(*example.inputs))
    chosen = {shape: "tiny" if shape.keys == shape.queries else "flash" for shape in shapes}
    change = choose_attention(one_level_i2vgen.unet, chosen)
    try:
        assert all(
            isinstance(attn.processor, ClipAttnProcessor) for attn in cross_attentions(one_level_i2vgen.unet).values()
        )
        exported = torch.export.export(module, example.inputs, strict=False)
        assert not exported.constants
        assert exported.state_dict.keys() <= module.state_dict().keys()
        assert float((exported.module()(*example.inputs) - plain).abs().max()) < 1e-5
        attended = {str(node.target) for node in exported.graph.nodes if "scaled_dot" in str(node.target)}
        assert attended == {"aten._scaled_dot_product_flash_attention_for_cpu.default"}
        assert float((trace(one_level_i2vgen.denoiser.module, example)(*example.inputs) - plain).abs().max()) < 1e-5
    finally:
        change.undo()
        prepared.undo()


@pytest.mark.parametrize(("spoil", "reason"), SPOILT_ATTENTION)
def test_a_layer_that_works_in_another_way_is_named_and_nothing_is_changed(spoil, reason):
    unet = nn.ModuleDict({name: Attention(8, heads=2, dim_head=4) for name in ("one", "two")})
    spoil(unet["two"])
    before = traces(unet)
    with pytest.raises(NotApplicable, match=f"^attention: two has {reason}"):
        choose_attention(unet)
    assert traces(unet) == before


def test_a_model_without_attention_is_refused_by_name():
    with pytest.raises(NotApplicable, match=r"^attention: Linear has no attention$"):
        choose_attention(nn.Linear(2, 2))


def test_it_is_not_put_in_place_twice(model):
    change = choose_attention(model.unet)
    before = traces(model.unet)
    with pytest.raises(NotApplicable, match=r"^attention: .* has it already$"):
        choose_attention(model.unet)
    assert traces(model.unet) == before
    change.undo()
