"""Block caching by diffusers' own cache: what is computed, what it changes, and where it does not fit."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from pipeline import ImageAnimationPipeline
from pipeline.optimise.base import NotApplicable
from pipeline.optimise.block_cache import cache_blocks
from pipeline.optimise.prepared import prepare_once
from pipeline.optimise.runtimes import put

from .small_checkpoints import SMALL

ALWAYS, NEVER = 1e9, -1.0
"""Thresholds below which every change, or none, counts as none."""

STEPS = 3


@pytest.fixture(scope="module", params=["wan-2.1", "wan-2.2-a14b", "cogvideox"])
def transformer(request, tmp_path_factory) -> ImageAnimationPipeline:
    folder = tmp_path_factory.mktemp("cached") / request.param
    SMALL[request.param]().save_pretrained(folder)
    pipe = ImageAnimationPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: ImageAnimationPipeline) -> torch.Tensor:
    return pipe(
        Image.linear_gradient("L").resize((40, 40)).convert("RGB"),
        "a red circle moves up",
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames


def calls_of_last_blocks(pipe: ImageAnimationPipeline) -> int:
    """Times that a last block was really computed in a request."""
    counted, hooks = [], []
    for network in pipe.networks:
        last = (getattr(network, "blocks", None) or network.transformer_blocks)[-1]
        attention = next(module for name, module in last.named_children() if name.startswith("attn"))
        hooks.append(attention.register_forward_hook(lambda *_: counted.append(1)))
    latents(pipe)
    for hook in hooks:
        hook.remove()
    return len(counted)


@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "prepared"])
def test_a_threshold_that_nothing_stays_below_changes_nothing(transformer, prepared):
    plain = latents(transformer)
    below = prepare_once(transformer) if prepared else None
    change = cache_blocks(transformer, NEVER)
    assert torch.allclose(latents(transformer), plain, atol=1e-5)
    change.undo()
    if below is not None:
        below.undo()
    assert torch.equal(latents(transformer), plain)


def test_below_the_threshold_each_branch_reuses_its_own_later_blocks(transformer):
    plain, every = latents(transformer), calls_of_last_blocks(transformer)
    change = cache_blocks(transformer, ALWAYS)
    computed = calls_of_last_blocks(transformer)
    assert 0 < computed < every
    cached = latents(transformer)
    assert cached.isfinite().all()
    assert not torch.equal(cached, plain)
    assert torch.equal(latents(transformer), cached)  # nothing is kept from one request for the next
    change.undo()
    assert calls_of_last_blocks(transformer) == every


def test_it_is_not_put_in_place_twice_nor_below_a_program(transformer):
    change = cache_blocks(transformer, 0.1)
    with pytest.raises(NotApplicable, match="in place already"):
        cache_blocks(transformer, 0.1)
    change.undo()
    prepared = prepare_once(transformer)
    put(transformer, [lambda latents, *_: latents] * len(transformer.networks), "none", "")
    with pytest.raises(NotApplicable, match="traced or compiled program"):
        cache_blocks(transformer, 0.1)
    prepared.undo()


def test_a_transformer_of_one_block_has_nothing_to_reuse(tmp_path):
    SMALL["ltx"]().save_pretrained(tmp_path)
    pipe = ImageAnimationPipeline.from_pretrained(tmp_path)
    with pytest.raises(NotApplicable, match="block cache: LTXVideoTransformer3DModel: has a single block"):
        cache_blocks(pipe, 0.1)
    assert not pipe.network.is_cache_enabled


def test_a_unet_is_named_and_nothing_is_changed(i2vgen):
    before = i2vgen.denoiser
    with pytest.raises(NotApplicable, match="block cache: I2VGenXLUNet is no transformer"):
        cache_blocks(i2vgen, 0.1)
    assert i2vgen.denoiser is before
