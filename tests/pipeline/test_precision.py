"""Half precision: what is cast, what stays in float32, and how a precision is chosen."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from pipeline import ImageAnimationPipeline
from pipeline.optimise.precision import (
    LEAST_GAIN,
    LEAST_PSNR_DB,
    Trial,
    choose,
    has_half_units,
    set_precision,
    try_precisions,
)
from pipeline.optimise.prepared import prepare_once

from .small_checkpoints import SMALL

PARTS = ("unet", "text_encoder", "vae", "image_encoder")


def animate(pipe: ImageAnimationPipeline, output_type: str = "latent", **kwargs: Any) -> Any:
    torch.manual_seed(0)  # of the posterior of I2VGen-XL
    picture = Image.linear_gradient("L").resize((24, 20)).convert("RGB")
    generator = torch.Generator().manual_seed(0)
    return pipe(
        picture,
        "a red ball",
        num_frames=3,
        height=16,
        width=16,
        num_inference_steps=2,
        guidance_scale=3.0,
        image_guidance_scale=1.5,
        generator=generator,
        output_type=output_type,
        **kwargs,
    ).frames


def modules(pipe: ImageAnimationPipeline) -> dict[str, nn.Module]:
    return {name: getattr(pipe, name) for name in PARTS if getattr(pipe, name) is not None}


def dtypes(pipe: ImageAnimationPipeline) -> dict[str, set[torch.dtype]]:
    """Types of each component's floating-point weights and buffers."""
    return {
        name: {t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()}
        for name, module in modules(pipe).items()
    }


def weights(pipe: ImageAnimationPipeline) -> list[tuple[int, int, Tensor]]:
    """Each parameter and buffer: which it is, where its numbers lie, and a copy of them."""
    return [
        (id(t), t.data_ptr(), t.detach().clone())
        for module in modules(pipe).values()
        for t in (*module.parameters(), *module.buffers())
    ]


def same(before: list[tuple[int, int, Tensor]], after: list[tuple[int, int, Tensor]]) -> bool:
    return len(before) == len(after) and all(
        (one[0], one[1], one[2].dtype) == (other[0], other[1], other[2].dtype) and torch.equal(one[2], other[2])
        for one, other in zip(before, after, strict=True)
    )


def psnr(one: Tensor, reference: Tensor) -> float:
    error = float(((one - reference) ** 2).mean())
    return 20 * math.log10(float(reference.max() - reference.min())) - 10 * math.log10(error)


@pytest.mark.parametrize("prepare", [False, True], ids=["plain", "prepared"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_clip_in_half_precision_is_finite_and_near_that_of_float32(pipe, dtype, prepare):
    reference, pixels = animate(pipe), animate(pipe, "pt")
    changes = [prepare_once(pipe)] if prepare else []
    changes.append(set_precision(pipe, dtype))
    try:
        clip, clip_pixels = animate(pipe), animate(pipe, "pt")
    finally:
        for change in reversed(changes):
            change.undo()
    assert clip.isfinite().all()
    assert clip_pixels.isfinite().all()
    assert clip_pixels.dtype == torch.float32
    assert psnr(clip, reference) > 30
    assert psnr(clip_pixels, pixels) > 30


def test_latents_stay_in_float32_from_step_to_step(pipe):
    seen: list[torch.dtype] = []
    change = set_precision(pipe, torch.bfloat16)
    try:
        asked: list[torch.dtype] = []
        hook = pipe.unet.register_forward_pre_hook(lambda _m, args: asked.append(args[0].dtype))
        animate(pipe, callback_on_step_end=lambda _p, _i, _t, given: seen.append(given["latents"].dtype))
        hook.remove()
    finally:
        change.undo()
    assert seen == [torch.float32] * 2
    assert asked == [torch.bfloat16] * 2


@pytest.mark.parametrize(
    ("dtype", "asked", "overflows", "expected"),
    [
        (torch.float16, None, True, torch.float32),
        (torch.float16, None, False, torch.float16),
        (torch.bfloat16, None, True, torch.bfloat16),
        (torch.float16, torch.float16, True, torch.float16),
        (torch.float32, torch.bfloat16, False, torch.bfloat16),
    ],
)
def test_the_autoencoder_stays_in_float32_where_float16_would_overflow(pipe, dtype, asked, overflows, expected):
    before = pipe.vae.config.force_upcast
    pipe.vae.register_to_config(force_upcast=overflows)
    change = set_precision(pipe, dtype, asked)
    try:
        found = dtypes(pipe)
        assert found.pop("vae") == {expected}
        assert all(types == {dtype} for types in found.values())
        assert str(dtype).removeprefix("torch.") in change.detail
    finally:
        change.undo()
        pipe.vae.register_to_config(force_upcast=before)


def test_undo_gives_back_the_very_same_weights_bit_by_bit(pipe):
    before, clip = weights(pipe), animate(pipe)
    change = set_precision(pipe, torch.bfloat16)
    assert not same(before, weights(pipe))
    animate(pipe)
    change.undo()
    assert same(before, weights(pipe))
    assert torch.equal(animate(pipe), clip)


def test_changes_on_top_of_each_other_are_undone_in_reverse_order(pipe):
    before = weights(pipe)
    first = set_precision(pipe, torch.bfloat16)
    second = set_precision(pipe, torch.float32)  # now of bfloat16's digits
    second.undo()
    assert dtypes(pipe)["unet"] == {torch.bfloat16}
    first.undo()
    assert same(before, weights(pipe))


def test_trials_compare_each_precision_with_float32_and_leave_the_pipeline_as_it_was(pipe):
    before = weights(pipe)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    layer = next(m for m in pipe.unet.modules() if isinstance(m, Attention)).to_q
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    trials = try_precisions(
        pipe,
        lambda: layer(x.to(pipe.unet.dtype)),
        lambda: pipe.vae.decode(latents.to(pipe.vae.dtype)).sample,
        repeats=1,
    )
    assert same(before, weights(pipe))
    assert [(t.component, t.dtype) for t in trials] == [
        (component, dtype) for component in ("network", "vae") for dtype in ("float32", "bfloat16", "float16")
    ]
    assert all(t.finite and t.seconds >= 0 for t in trials)
    for reference, bfloat16, float16 in (trials[:3], trials[3:]):
        assert reference.psnr_db == 100
        assert 30 < bfloat16.psnr_db < float16.psnr_db < 100  # 8 and 11 bits of significand


def test_a_precision_that_overflows_is_told_and_a_failing_trial_leaves_the_pipeline_as_it_was(pipe):
    before = weights(pipe)
    large = torch.tensor([1.0, 7e4])

    trials = try_precisions(pipe, lambda: large.to(pipe.unet.dtype), lambda: large, repeats=1)
    assert {t.dtype: t.finite for t in trials if t.component == "network"} == {
        "float32": True,
        "bfloat16": True,
        "float16": False,
    }

    def fail() -> Tensor:
        raise RuntimeError("no kernel for it")

    with pytest.raises(RuntimeError, match="no kernel"):
        try_precisions(pipe, lambda: large, fail, dtypes=(torch.bfloat16,))
    assert same(before, weights(pipe))


def test_nothing_is_near_to_a_float32_that_is_not_finite(i2vgen):
    calls = iter(range(99))

    def first_fails() -> Tensor:  # the call before the timed one, and that one
        return torch.tensor([1.0, math.nan if next(calls) < 2 else 2.0])

    trials = try_precisions(i2vgen, first_fails, lambda: torch.ones(2), repeats=1)
    assert not any(t.finite for t in trials if t.component == "network")


GPU = torch.device("cuda")  # of which no more is asked than its kind


def test_without_units_for_half_precision_no_clock_chooses_it():
    cpu = torch.device("cpu")
    trials = [Trial("network", "float32", 9.0, 100, finite=True), Trial("network", "bfloat16", 0.1, 100, finite=True)]
    assert choose(trials, cpu) == {"network": torch.bfloat16 if has_half_units(cpu) else torch.float32}
    assert choose(trials, GPU) == {"network": torch.bfloat16}


trials_of = st.lists(
    st.builds(
        Trial,
        component=st.sampled_from(["network", "vae"]),
        dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
        seconds=st.floats(0, 10),
        psnr_db=st.floats(-50, 100) | st.sampled_from([-math.inf, math.nan]),
        finite=st.booleans(),
    ),
    max_size=12,
)


@given(trials_of, st.floats(0, 60))
def test_the_choice_is_the_fastest_that_is_good_enough_and_else_float32(trials, least):
    chosen = choose(trials, GPU, least)
    assert chosen.keys() == {t.component for t in trials}
    for component, dtype in chosen.items():
        good = [t for t in trials if t.component == component and t.finite and t.psnr_db >= least]
        fastest = min((t.seconds for t in good), default=None)
        plain = next((t.seconds for t in good if t.dtype == "float32"), float("inf"))
        if fastest is None or plain < LEAST_GAIN * fastest:
            assert dtype is torch.float32
        else:
            assert str(dtype).removeprefix("torch.") in {t.dtype for t in good if t.seconds == fastest}


def test_a_gain_that_could_be_noise_is_not_taken():
    plain = Trial("network", "float32", 1.0, 100, finite=True)
    assert choose([plain, Trial("network", "bfloat16", 0.9, 60, finite=True)], GPU) == {"network": torch.float32}
    assert choose([plain, Trial("network", "bfloat16", 0.8, 60, finite=True)], GPU) == {"network": torch.bfloat16}


def test_a_fast_precision_that_shows_is_not_chosen():
    trials = [
        Trial("network", "float32", 1.0, 100, finite=True),
        Trial("network", "bfloat16", 0.5, LEAST_PSNR_DB - 0.1, finite=True),
        Trial("network", "float16", 0.2, 100, finite=False),
        Trial("vae", "float32", 1.0, 100, finite=True),
        Trial("vae", "bfloat16", 0.5, LEAST_PSNR_DB, finite=True),
    ]
    assert choose(trials, GPU) == {"network": torch.float32, "vae": torch.bfloat16}


def test_what_is_cast_is_what_is_loaded_in_that_precision(tmp_path):
    """Of HunyuanVideo-1.5 too, whose text encoder computes frequencies when it is loaded."""
    SMALL["hunyuanvideo-1.5"]().save_pretrained(tmp_path / "whole")
    cast = ImageAnimationPipeline.from_pretrained(tmp_path / "whole")
    set_precision(cast, torch.bfloat16)
    cast.save_pretrained(tmp_path / "cast")
    loaded = ImageAnimationPipeline.from_pretrained(tmp_path / "cast", dtype="stored")
    for name, part in cast.components.items():
        if isinstance(part, nn.Module):
            theirs = dict(getattr(loaded, name).named_buffers()) | dict(getattr(loaded, name).named_parameters())
            mine = dict(part.named_buffers()) | dict(part.named_parameters())
            assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items()), name
