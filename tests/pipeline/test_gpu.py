"""What only a GPU runs: its own layout and attention, programs compiled for it, and the numbers that come of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline import ImageAnimationPipeline
from pipeline.bench.measure import held_bytes
from pipeline.commands.cli import main
from pipeline.model.example import seeded_request
from pipeline.optimise import packages
from pipeline.optimise.attention import attend, attention_shapes, choose_attention, time_backends
from pipeline.optimise.base import NotApplicable
from pipeline.optimise.layout import channels_last
from pipeline.optimise.named import NAMED, attention_backend, attention_backends, fastest_backend
from pipeline.optimise.packaged import tune
from pipeline.optimise.precision import difference as precision_difference
from pipeline.optimise.precision import set_precision
from pipeline.optimise.prepared import prepare_once
from pipeline.optimise.runtimes import example_of
from pipeline.packaging.package import package
from pipeline.serve.engine import Animator
from pipeline.serve.request import AnimationRequest
from pipeline.serve.sources import open_checkpoint

from ..conftest import test_device
from .small_checkpoints import SMALL

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

DEVICE = torch.device(test_device())
ON_GPU = DEVICE.type == "cuda"


@pytest.fixture(autouse=True)
def _all_digits() -> Iterator[None]:
    """Convolutions in float32 and not in TF32, so that what differs is what a test changed."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def placed(pipe: ImageAnimationPipeline, **settings: Any) -> ImageAnimationPipeline:
    """A copy on the device: the models of the fixtures are shared, and `.to` would move them."""
    parts = {name: copy.deepcopy(part) for name, part in pipe.components.items()}
    mode = {"image_latents_mode": "mode"} if pipe.family.name == "i2vgen-xl" else {}
    made = ImageAnimationPipeline(**parts, num_frames=3, num_inference_steps=2, **{**mode, **settings}).to(DEVICE)
    made.set_progress_bar_config(disable=True)
    return made


def animate(pipe: ImageAnimationPipeline, **more: Any) -> Tensor:
    picture = Image.linear_gradient("L").resize((24, 20)).convert("RGB")
    generator = torch.Generator().manual_seed(0)  # of the processor, so that the noise is the same on all devices
    given = {"guidance_scale": 3.0, "height": 16, "width": 16, "output_type": "latent", **more}
    return pipe(picture, "a red ball", generator=generator, **given).frames.cpu().float()


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(((one.astype(float) - other.astype(float)) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def test_a_request_gives_on_the_gpu_what_it_gives_on_the_processor(pipe):
    mine = placed(pipe)
    on_gpu = animate(mine)
    assert difference(on_gpu, animate(mine.to("cpu"))) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_is_kept_between_all_layers_and_gives_the_same(i2vgen, dtype):
    mine = placed(i2vgen)
    exact = animate(mine)
    set_precision(mine, dtype)
    plain = animate(mine)
    change = channels_last(mine.unet)
    kept: list[bool] = []
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, out: kept.append(out.is_contiguous(memory_format=torch.channels_last))
        )
        for name, module in mine.unet.named_modules()
        if isinstance(module, nn.Conv2d | nn.GroupNorm) and not name.startswith("image_")
    ]
    laid_out = animate(mine)
    for hook in hooks:
        hook.remove()
    change.undo()
    assert len(kept) > len(hooks) > 10
    assert all(kept)
    assert difference(laid_out, exact) < 1e-3 + 2 * difference(plain, exact)
    assert difference(animate(mine), plain) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_every_attention_back_end_that_takes_a_shape_gives_what_pytorch_gives(i2vgen, dtype):
    mine = placed(i2vgen)
    prepare_once(mine)
    example = example_of(mine)
    step = mine.denoiser.module
    shapes = attention_shapes(mine.unet, lambda: step(*example.inputs))
    taken = set()
    for shape in shapes:
        query, key, value = (
            torch.randn(shape.batch, shape.heads, length, 8, device=DEVICE, dtype=dtype)
            for length in (shape.queries, shape.keys, shape.keys)
        )
        plain = nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float())
        for backend in time_backends(type(shape).of(query, key), DEVICE, dtype, repeats=1):
            found = attend(query, key, value, backend)
            assert torch.allclose(found.float(), plain, atol=1e-4 if dtype == torch.float32 else 3e-2), backend
            taken.add(backend)
    assert taken >= {"math", "tiny"}
    if ON_GPU:
        assert "efficient" in taken
    if ON_GPU and dtype == torch.bfloat16:
        assert "flash" in taken


@torch.no_grad()
def test_a_back_end_chosen_for_each_shape_gives_the_same_step(pipe):
    mine = placed(pipe)
    prepare_once(mine)
    example = example_of(mine)
    step = mine.denoiser.module
    plain = step(*example.inputs)
    shapes = attention_shapes(mine.unet, lambda: step(*example.inputs))
    took = {shape: time_backends(shape, DEVICE, torch.float32, repeats=1) for shape in shapes}
    for backend in {backend for times in took.values() for backend in times}:
        change = choose_attention(mine.unet, {shape: backend for shape in shapes if backend in took[shape]})
        assert difference(step(*example.inputs), plain) < 1e-3, backend
        change.undo()
    assert difference(step(*example.inputs), plain) < 1e-5


def test_tuning_changes_layout_and_attention_and_not_the_clip(pipe):
    mine = placed(pipe)
    plain = animate(mine)
    applied = tune(mine)
    assert [change.name for change in applied.changes] == ["prepare", *(["layout", "attention"] if ON_GPU else [])]
    assert difference(animate(mine), plain) < 1e-3
    applied.undo()
    assert difference(animate(mine), plain) < 1e-5


def clip_of(animator: Animator) -> np.ndarray:
    picture = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    return animator.animate(picture, AnimationRequest("a red ball", seed=1)).clip


def check_package(folder: Path, runtime: str, precision: str) -> None:
    """What was packaged on this device animates on it as on the processor, by the program that was asked for."""
    source = open_checkpoint(folder, str(DEVICE))
    packaged = package(source, {}, runtime, precision)  # refuses by itself what differs from its source
    animator = Animator.load(packaged.path, device=str(DEVICE))
    assert (animator.runtime, animator.fallback) == (runtime, None)
    assert animator.pipe.device.type == DEVICE.type
    on_processor = clip_of(open_checkpoint(folder, "cpu"))
    assert psnr(clip_of(animator), on_processor) > (50 if precision == "float32" else 25)


@pytest.mark.parametrize("runtime", ["eager", "torchscript"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_package_animates_on_the_gpu_as_its_checkpoint_does_on_the_processor(teacher_folder, runtime, precision):
    check_package(teacher_folder, runtime, precision)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["compile", "aot"])
def test_a_compiled_package_does_too(teacher_folder, runtime):
    check_package(teacher_folder, runtime, "float32")


@pytest.mark.slow
def test_a_program_compiled_for_the_gpu_steps_aside_for_other_shapes(one_level_i2vgen, tmp_path):
    mine = placed(one_level_i2vgen)
    prepare_once(mine)
    requests: list[dict[str, Any]] = [{}, {"num_frames": 2}]
    plain = [animate(mine, **request) for request in requests]
    (program,) = packages.build(mine, [example_of(mine)], tmp_path).programs
    assert program.device == packages.device_key(DEVICE)
    change = packages.load(mine, tmp_path)
    for request, expected in zip(requests, plain, strict=True):
        assert difference(animate(mine, **request), expected) < 1e-3
    assert mine.denoiser.run.misses == 2  # the steps of the shorter clip
    change.undo()


# ------------------------------------------------------------------ transformers


@pytest.fixture(scope="module", params=["wan-2.2-a14b", "wan-2.2-ti2v", "ltx"])
def transformer(request, tmp_path_factory) -> tuple[Path, ImageAnimationPipeline]:
    """A small checkpoint in bfloat16 on the device, and its folder."""
    folder = tmp_path_factory.mktemp("gpu") / request.param
    SMALL[request.param]().save_pretrained(folder)
    pipe = ImageAnimationPipeline.from_pretrained(folder)
    pipe.register_to_config(num_frames=9, height=64, width=64, num_inference_steps=2)
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    set_precision(pipe, torch.bfloat16)
    return folder, pipe.to(DEVICE)


def seeded(pipe: ImageAnimationPipeline) -> Tensor:
    return torch.from_numpy(seeded_request(pipe))


def decibels(one: Tensor, other: Tensor) -> float:
    return precision_difference(one, other, 1.0)[1]


@pytest.mark.parametrize("name", NAMED)
def test_a_change_of_a_transformer_leaves_its_clip_and_is_undone(transformer, name):
    _, pipe = transformer
    plain, held = seeded(pipe), held_bytes(pipe)
    try:
        change = NAMED[name].apply(pipe)
    except NotApplicable as error:
        pytest.skip(str(error))  # such as no torchao, or frames no larger than a tile
    changed, after = seeded(pipe), held_bytes(pipe)
    change.undo()
    assert decibels(changed, plain) > 30
    if name not in {"tiling", "compile-blocks"}:
        assert after < held
    assert held_bytes(pipe) == held
    assert decibels(seeded(pipe), plain) > 60


def test_back_ends_of_a_transformer_that_run_here_agree(transformer):
    _, pipe = transformer
    plain, ran = seeded(pipe), []
    for backend in attention_backends():
        try:
            change = attention_backend(pipe, backend)
        except NotApplicable:
            continue
        assert decibels(seeded(pipe), plain) > 30, backend
        change.undo()
        ran.append(backend)
    assert {"native", "_native_math"} <= set(ran)
    assert fastest_backend(pipe) in ran
    if ON_GPU:
        assert "_native_flash" in ran


def test_a_transformer_is_served_with_its_weights_off_the_gpu(transformer):
    folder, plain = transformer
    source = open_checkpoint(folder, str(DEVICE))
    packaged = package(source, {}, "eager", "bfloat16", ["offload", "float8-storage"])
    animator = Animator.load(packaged.path, device=str(DEVICE))
    assert (animator.fallback is None) == ON_GPU
    assert held_bytes(animator.pipe) < held_bytes(plain)
    assert psnr(clip_of(animator), clip_of(source)) > 25


@pytest.mark.slow
def test_a_transformer_compiled_ahead_of_time_answers_for_each_of_its_sizes(transformer):
    folder, _ = transformer
    packaged = package(open_checkpoint(folder, str(DEVICE)), {}, "aot", "bfloat16")
    animator = Animator.load(packaged.path, device=str(DEVICE))
    assert (animator.runtime, animator.fallback) == ("aot", None)
    for height, width in packaged.info.sizes:
        picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        assert animator.animate(picture, AnimationRequest("a red ball", seed=1)).runtime == "aot"


@pytest.mark.slow
def test_the_ladder_of_a_transformer_is_measured_whole(transformer, capsys):
    folder, _ = transformer
    for part in ("request", "pass", "decode"):
        assert main(["bench", "--model", str(folder), "--part", part, "--repeats", "1"]) == 0
        assert "WRONG OUTPUT" not in capsys.readouterr().out
