"""Small random models of both families, and diffusers' own pipelines around the same weights."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    I2VGenXLUNet,
    MotionAdapter,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.models.attention_processor import Attention, SlicedAttnProcessor
from diffusers.pipelines.deprecated.i2vgen_xl.pipeline_i2vgen_xl import I2VGenXLPipeline
from diffusers.pipelines.deprecated.pia.pipeline_pia import PIAPipeline
from PIL import Image
from torch import nn
from transformers import CLIPTextModel

from pipeline import ImageAnimationPipeline
from pipeline.bench.presets import clip_pictures
from pipeline.commands.cli import main

from ..models import clip_text, clip_vision, word_tokenizer

WIDTH = 32  # of text and image embeddings


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # Threads cost more than they bring on tensors this small.
    torch.set_num_threads(1)


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does, done by the system: a file ends in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def wake(module: nn.Module) -> None:
    """Fill the layers that begin at zero, so that a difference behind them shows."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)


def _with_own_processor(attn: Attention) -> None:
    attn.set_processor(SlicedAttnProcessor(1))


def _with_group_norm(attn: Attention) -> None:
    attn.group_norm = nn.GroupNorm(1, 8)


def _without_scale(attn: Attention) -> None:
    attn.scale_qk = False


SPOILT_ATTENTION = [
    (_with_own_processor, r"a processor of its own \(SlicedAttnProcessor\)"),
    (_with_group_norm, "group_norm, which is not supported"),
    (_without_scale, "queries that are not scaled"),
]
"""What makes an attention layer one that an optimisation does not fit, and how that is said."""


def _text_encoder(tokenizer: Any) -> CLIPTextModel:
    # Three layers, so that leaving out the last one makes a difference.
    return clip_text(tokenizer, WIDTH, layers=3)


def _vae() -> AutoencoderKL:
    """Factor 4, four latent channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
    )


def _i2vgen_unet() -> I2VGenXLUNet:
    return I2VGenXLUNet(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )


def unet_2d() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )


def motion_adapter(conv_in_channels: int | None = 9) -> MotionAdapter:
    return MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        conv_in_channels=conv_in_channels,
    )


ONE_LEVEL = {
    "block_out_channels": (8,),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": WIDTH,
}
"""A U-Net of few blocks: a compiler takes its time with each. The context is looked at in the middle."""


def _one_level_i2vgen(sample_size: int) -> I2VGenXLUNet:
    return I2VGenXLUNet(
        **ONE_LEVEL,
        sample_size=sample_size,
        down_block_types=("DownBlock3D",),
        up_block_types=("UpBlock3D",),
        attention_head_dim=4,
    )


def _one_level_motion() -> UNetMotionModel:
    return UNetMotionModel(
        **ONE_LEVEL,
        sample_size=4,
        in_channels=9,
        down_block_types=("DownBlockMotion",),
        up_block_types=("UpBlockMotion",),
        num_attention_heads=2,
        motion_num_attention_heads=2,
    )


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)


@pytest.fixture(scope="session")
def i2vgen_parts() -> dict[str, Any]:
    """Components of a random I2VGen-XL checkpoint. Tests leave them as they are."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    parts = {
        "vae": _vae(),
        "text_encoder": _text_encoder(tokenizer),
        "unet": _i2vgen_unet(),
        "image_encoder": clip_vision(32, WIDTH),
    }
    for part in parts.values():
        wake(part.eval())
    return {
        **parts,
        "tokenizer": tokenizer,
        "scheduler": _scheduler(),
        "feature_extractor": clip_pictures(32),
    }


@pytest.fixture(scope="session")
def pia_parts() -> dict[str, Any]:
    """Components of a random PIA checkpoint: a picture U-Net and a motion adapter."""
    torch.manual_seed(1)
    tokenizer = word_tokenizer()
    parts = {
        "vae": _vae(),
        "text_encoder": _text_encoder(tokenizer),
        "unet": unet_2d(),
        "motion_adapter": motion_adapter(),
    }
    for part in parts.values():
        wake(part.eval())
    return {**parts, "tokenizer": tokenizer, "scheduler": _scheduler()}


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def i2vgen_reference(i2vgen_parts) -> I2VGenXLPipeline:
    return _quiet(I2VGenXLPipeline(**i2vgen_parts))


@pytest.fixture
def i2vgen(i2vgen_parts) -> ImageAnimationPipeline:
    return _quiet(ImageAnimationPipeline(**i2vgen_parts))


@pytest.fixture(scope="session")
def _pia_unet(pia_parts) -> UNetMotionModel:
    unet = UNetMotionModel.from_unet2d(pia_parts["unet"], pia_parts["motion_adapter"]).eval()
    wake(unet)
    return unet


@pytest.fixture
def pia_reference(pia_parts, _pia_unet) -> PIAPipeline:
    return _quiet(PIAPipeline(**{**pia_parts, "unet": _pia_unet}))


@pytest.fixture
def pia(pia_parts, _pia_unet) -> ImageAnimationPipeline:
    return _quiet(ImageAnimationPipeline(**{**pia_parts, "unet": _pia_unet}))


@pytest.fixture(scope="session")
def one_level_i2vgen_parts(i2vgen_parts) -> dict[str, Any]:
    """Those of I2VGen-XL with a U-Net of one level, for tests that trace, export or compile it, or train it."""
    torch.manual_seed(0)
    unet = _one_level_i2vgen(sample_size=4).eval()
    wake(unet)
    return {**i2vgen_parts, "unet": unet}


@pytest.fixture(scope="session")
def one_level_pia_parts(pia_parts) -> dict[str, Any]:
    """The same of PIA."""
    torch.manual_seed(0)
    unet = _one_level_motion().eval()
    wake(unet)
    return {**pia_parts, "unet": unet}


@pytest.fixture
def one_level_i2vgen(one_level_i2vgen_parts) -> ImageAnimationPipeline:
    return _quiet(ImageAnimationPipeline(**one_level_i2vgen_parts, num_frames=2))


@pytest.fixture
def one_level_pia(one_level_pia_parts) -> ImageAnimationPipeline:
    return _quiet(ImageAnimationPipeline(**one_level_pia_parts, num_frames=2))


@pytest.fixture(params=["i2vgen", "pia"])
def pipe(request) -> ImageAnimationPipeline:
    """Our pipeline around each family in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Makes pictures of random pixels that vary slowly, as pictures do."""

    def make(width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
        rough = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture
def equal_weights() -> Callable[[DiffusionPipeline, DiffusionPipeline], bool]:
    """Whether two pipelines hold the same weights, bit by bit."""

    def compare(one: DiffusionPipeline, other: DiffusionPipeline) -> bool:
        for name, part in one.components.items():
            if isinstance(part, nn.Module):
                mine, theirs = part.state_dict(), getattr(other, name).state_dict()
                if mine.keys() != theirs.keys() or not all(torch.equal(mine[k], theirs[k]) for k in mine):
                    return False
        return True

    return compare


@pytest.fixture(scope="session")
def teacher_folder(i2vgen_parts, tmp_path_factory) -> Path:
    """A whole random teacher on disk that animates in a blink: 4 frames of 32 pixels, 2 steps, 3 branches."""
    torch.manual_seed(0)
    unet = _one_level_i2vgen(sample_size=8).eval()
    wake(unet)
    pipe = ImageAnimationPipeline(
        **{**i2vgen_parts, "unet": unet},
        image_latents_fill="repeat",
        image_latents_mode="mode",
        num_inference_steps=2,
        guidance_scale=2.0,
        image_guidance_scale=1.5,
        num_frames=4,
        fps=8,
    )
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def image(tmp_path, picture) -> Path:
    path = tmp_path / "photo.png"
    picture(48, 40).save(path)
    return path


@pytest.fixture
def animate(image, teacher_folder, tmp_path):
    """Runs a plain `animate` in this process; arguments that are given win."""
    out = str(tmp_path / "clip.webp")
    given = ["--image", str(image), "--prompt", "a red circle moves up", "--out", out, "--model", str(teacher_folder)]
    return lambda *more: main(["animate", *given, *more])
