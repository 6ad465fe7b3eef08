"""A U-Net in channels last: the same numbers, and nothing copied to the default layout on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import I2VGenXLUNet, UNet3DConditionModel, UNetMotionModel
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.upsampling import Upsample2D
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.optimise.base import NotApplicable
from pipeline.optimise.layout import channels_last, group_norm
from pipeline.optimise.prepared import prepare_once
from pipeline.optimise.runtimes import compile_blocks, example_of, trace

from .conftest import wake

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


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Model:
    """A U-Net, and a call of it with latents of a side."""

    unet: nn.Module
    call: Callable[[int], Tensor]


def i2vgen_xl() -> Model:
    unet = I2VGenXLUNet(**LEVELS, **BLOCKS_3D)

    def call(side: int) -> Tensor:
        return unet(
            noise(CLIPS, 4, FRAMES, side, side),
            timestep=torch.tensor([7, 500]),
            fps=torch.tensor([4, 16]),
            image_latents=noise(CLIPS, 4, FRAMES, side, side, seed=1),
            image_embeddings=noise(CLIPS, 1, WIDTH, seed=2),
            encoder_hidden_states=noise(CLIPS, TOKENS, WIDTH, seed=3),
        ).sample

    return Model(unet, call)


def condition_3d() -> Model:
    unet = UNet3DConditionModel(**LEVELS, **BLOCKS_3D)
    context = noise(CLIPS, TOKENS, WIDTH, seed=1)
    return Model(
        unet, lambda side: unet(noise(CLIPS, 4, FRAMES, side, side), 500, encoder_hidden_states=context).sample
    )


def motion() -> Model:
    unet = UNetMotionModel(
        **LEVELS,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        num_attention_heads=2,
        motion_num_attention_heads=2,
    )
    context = noise(CLIPS, TOKENS, WIDTH, seed=1).repeat_interleave(FRAMES, dim=0)
    return Model(
        unet, lambda side: unet(noise(CLIPS, 4, FRAMES, side, side), 500, encoder_hidden_states=context).sample
    )


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
    modules = [(name, type(module), sorted(vars(module))) for name, module in unet.named_modules()]
    return [*modules, *((name, p.stride()) for name, p in unet.named_parameters())]


class Copies(TorchDispatchMode):
    """Counts copies of tensors of four and more dimensions, which is what images are in on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name in {"aten::clone", "aten::_to_copy", "aten::copy_"} and args[0].ndim >= 4:
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


def copies(call: Callable[[], Any]) -> int:
    with Copies() as mode:
        call()
    return mode.counted.total()


@pytest.mark.parametrize("side", [SIDE, 5])
def test_the_prediction_is_the_same_and_undo_gives_back_the_model_bit_by_bit(model, side):
    before, plain, names = traces(model.unet), model.call(side), list(model.unet.state_dict())
    change = channels_last(model.unet)
    assert list(model.unet.state_dict()) == names
    assert float((model.call(side) - plain).abs().max()) < 1e-5
    change.undo()
    assert traces(model.unet) == before
    assert torch.equal(model.call(side), plain)


def test_every_convolution_and_group_norm_of_the_blocks_reads_and_writes_channels_last(model):
    change = channels_last(model.unet)
    wrong: list[str] = []
    seen: Counter[str] = Counter()

    def look(name: str) -> Callable[..., None]:
        def hook(_module, args, output):
            seen[name] += 1
            if not all(x.is_contiguous(memory_format=torch.channels_last) for x in (args[0], output)):
                wrong.append(name)

        return hook

    hooks = [
        module.register_forward_hook(look(name))
        for name, module in model.unet.named_modules()
        # Motion modules, which are left as they are, have group norms of five dimensions. Encoders of
        # the picture are no part of a step; `conv_in` converts for itself.
        if isinstance(module, nn.Conv2d | nn.GroupNorm)
        and name != "conv_in"
        and not name.startswith("image_")
        and "motion_modules" not in name
    ]
    model.call(SIDE)
    for hook in hooks:
        hook.remove()
    change.undo()
    assert len(seen) == len(hooks) > 10
    if not isinstance(model.unet, UNetMotionModel):  # behind a motion module the default layout is back for a while
        assert not wrong


def test_images_are_copied_less_often(model):
    plain = copies(lambda: model.call(SIDE))
    change = channels_last(model.unet)
    fewer = copies(lambda: model.call(SIDE))
    change.undo()
    assert fewer < plain


def test_a_layer_over_time_copies_nothing():
    layer = TemporalConvLayer(8, 8, norm_num_groups=4).eval()
    nn.init.normal_(layer.conv4[-1].weight, std=0.1)
    unet = nn.ModuleDict({"layer": layer})
    unet.conv_in = nn.Conv2d(1, 1, 1)
    images = noise(6, 8, 5, 4)
    with torch.no_grad():
        plain = layer(images, num_frames=3)
        change = channels_last(unet)
        images = images.contiguous(memory_format=torch.channels_last)
        with Copies() as mode:
            out = layer(images, num_frames=3)
        change.undo()
    assert torch.allclose(out, plain, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert not mode.counted


def test_more_rows_than_diffusers_trusts_the_kernel_with_are_doubled_in_channels_last():
    layer = Upsample2D(4, use_conv=True).eval()
    unet = nn.ModuleDict({"layer": layer})
    unet.conv_in = nn.Conv2d(1, 1, 1)
    images = noise(64, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    plain = layer(images)
    change = channels_last(unet)
    out = layer(images)
    change.undo()
    assert torch.allclose(out, plain, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)


@given(
    rows=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    affine=st.booleans(),
    offset=st.sampled_from([0.0, 10.0]),
    learns=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_the_group_norm_for_gpus_gives_what_pytorchs_own_gives(rows, groups, height, width, affine, offset, learns):
    images = noise(rows, 8, height, width).contiguous(memory_format=torch.channels_last) + offset
    weight, bias = (noise(8, seed=1), noise(8, seed=2)) if affine else (None, None)
    with torch.set_grad_enabled(learns):
        normed = group_norm(images, groups, weight, bias, 1e-5)
    assert normed.is_contiguous(memory_format=torch.channels_last)
    plain = F.group_norm(images, groups, weight, bias, 1e-5)
    # Ten deviations from zero, one of float32's digits is lost in either.
    assert torch.allclose(normed, plain, atol=1e-5 if offset == 0 else 1e-3)


def test_the_group_norm_for_gpus_is_as_exact_in_half_precision_as_that_allows():
    images = (3 * noise(2, 32, 16, 16) + 1).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    weight, bias = noise(32, seed=1).to(torch.bfloat16), noise(32, seed=2).to(torch.bfloat16)
    with torch.no_grad():
        normed = group_norm(images, 4, weight, bias, 1e-5)
    exact = F.group_norm(images.double(), 4, weight.double(), bias.double(), 1e-5)
    assert normed.dtype == torch.bfloat16
    assert torch.allclose(normed.double(), exact, atol=1e-3, rtol=2**-8)


@torch.no_grad()
def test_a_step_is_exported_traced_and_compiled_in_channels_last(one_level_i2vgen):
    prepared = prepare_once(one_level_i2vgen)
    example = example_of(one_level_i2vgen)
    module = one_level_i2vgen.denoiser.module
    plain = module(*example.inputs)
    change = channels_last(one_level_i2vgen.unet)
    try:
        exported = torch.export.export(module, example.inputs, strict=False)
        assert not exported.constants
        assert exported.state_dict.keys() <= module.state_dict().keys()
        assert torch.ops.aten.conv3d.default not in {node.target for node in exported.graph.nodes}
        assert float((exported.module()(*example.inputs) - plain).abs().max()) < 1e-5
        assert float((trace(one_level_i2vgen.denoiser.module, example)(*example.inputs) - plain).abs().max()) < 1e-5
        compiled = compile_blocks(one_level_i2vgen, backend="eager")
        assert float((module(*example.inputs) - plain).abs().max()) < 1e-5
        compiled.undo()
    finally:
        change.undo()
        assert torch.equal(module(*example.inputs), plain)
        prepared.undo()


def test_a_model_without_convolution_at_its_entrance_is_refused_by_name():
    with pytest.raises(NotApplicable, match=r"^layout: Linear is no U-Net of two-dimensional convolutions$"):
        channels_last(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.Conv3d(8, 8, (5, 1, 1), padding=(2, 0, 0)), r"has a kernel of \(5, 1, 1\), which is not supported"),
        (nn.Conv1d(8, 8, 3), "ends in a Conv1d, not in a Conv3d"),
    ],
    ids=["kernel", "kind"],
)
def test_a_layer_over_time_of_another_shape_is_named_and_nothing_is_changed(conv, reason):
    unet = condition_3d().unet
    name = [name for name, module in unet.named_modules() if isinstance(module, TemporalConvLayer)][-1]
    unet.get_submodule(name).conv3[-1] = conv
    before = traces(unet)
    with pytest.raises(NotApplicable, match=f"^layout: {name}.conv3 {reason}"):
        channels_last(unet)
    assert traces(unet) == before


def test_it_is_not_put_in_place_twice(model):
    change = channels_last(model.unet)
    before = traces(model.unet)
    with pytest.raises(NotApplicable, match=r"^layout: it is in place already$"):
        channels_last(model.unet)
    assert traces(model.unet) == before
    change.undo()
