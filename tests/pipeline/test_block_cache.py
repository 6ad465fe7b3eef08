"""Block caching by diffusers' own cache: what is computed, what it changes, and where it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, MagCacheConfig
from PIL import Image

from pipeline import ImageAnimationPipeline
from pipeline.distill.data import GeneratedSource
from pipeline.distill.passes import conditions
from pipeline.model.guidance import Guidance
from pipeline.optimise.base import NotApplicable
from pipeline.optimise.block_cache import _Cached, cache_blocks
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


def teacher_that_learned(folder: Path) -> ImageAnimationPipeline:
    """A Wan of six layers that learns flow matching on generated clips; its autoencoder stays random."""
    pipe, random = SMALL["wan-2.2-ti2v"](), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    config = {**pipe.transformer.config, "num_layers": 6, "ffn_dim": 64}
    pipe.register_modules(transformer=type(pipe.transformer).from_config(config).eval())
    pipe.save_pretrained(folder)
    teacher = ImageAnimationPipeline.from_pretrained(folder)
    teacher.set_progress_bar_config(disable=True)
    teacher.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    teacher.register_to_config(num_frames=9, height=32, width=32, num_inference_steps=40, guidance_scale=1.0)
    source, family, known = GeneratedSource(32, 9, 8, seed=1), teacher.family, []
    for number in range(16):
        examples = source[number]
        with torch.no_grad():
            clean = family.encode_clip(teacher.parts, examples.clips * 2 - 1).float()
        known.append((clean, conditions(teacher, examples, Guidance(1.0), random)[1]))
    network = teacher.transformer.requires_grad_()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for update in range(500):
        clean, cond = known[update % len(known)]
        u = torch.rand(len(clean), 1, 1, 1, 1, generator=random)
        sigma, noise = 3 * u / (1 + 2 * u), torch.randn(clean.shape, generator=random)
        z = family.hold((1 - sigma) * clean + sigma * noise, cond)
        error = family.predict(network, z, 1000 * sigma.flatten(), cond) - (noise - clean)
        optimizer.zero_grad()
        error[:, :, 1:].square().mean().backward()
        optimizer.step()
    network.requires_grad_(requires_grad=False)
    return teacher


@pytest.mark.slow
def test_on_a_teacher_that_learned_the_first_block_tells_better_than_magnitudes_what_can_be_reused(tmp_path):
    """Why there is no MagCache here: it computes more blocks, and is further off, whatever its threshold."""
    teacher = teacher_that_learned(tmp_path)
    examples = GeneratedSource(32, 9, 4, seed=1)[500]
    computed: list[int] = []
    for block in teacher.network.blocks:
        block.attn1.register_forward_hook(lambda *_: computed.append(1))

    def sample() -> torch.Tensor:
        computed.clear()
        generator = torch.Generator().manual_seed(3)
        return teacher(examples.pictures, examples.captions, generator=generator, output_type="latent").frames

    def measured(make: Callable[[], torch.Tensor]) -> tuple[float, float]:
        error = float((make() - exact).square().mean().sqrt())
        return len(computed) / whole, error

    def by_magnitude(config: MagCacheConfig) -> torch.Tensor:
        teacher.network.enable_cache(config)
        plain, teacher.denoiser = teacher.denoiser, _Cached(teacher.denoiser, (teacher.network,))
        try:
            return sample()
        finally:
            teacher.denoiser = plain
            teacher.network.disable_cache()

    exact = sample()
    whole = len(computed)
    first_block = {}
    for threshold in (0.02, 0.05):
        change = cache_blocks(teacher, threshold)
        first_block[threshold] = measured(sample)
        change.undo()
    printed = StringIO()
    with redirect_stdout(printed):
        by_magnitude(MagCacheConfig(calibrate=True, num_inference_steps=40))
    ratios = [float(ratio) for ratio in printed.getvalue().split("[")[-1].split("]")[0].split(",")]
    magnitudes = [
        measured(lambda: by_magnitude(MagCacheConfig(threshold, num_inference_steps=40, mag_ratios=ratios)))  # noqa: B023
        for threshold in (0.03, 0.06, 0.12, 0.24)
    ]
    shares, errors = zip(*magnitudes, strict=True)
    found = (first_block, magnitudes)
    assert first_block[0.02][0] < 0.6, found
    assert first_block[0.02][1] < min(errors) / 4, found
    assert first_block[0.05][0] < min(shares), found
    assert first_block[0.05][1] < min(errors), found
