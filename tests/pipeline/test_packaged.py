"""What is published is what was judged: precision, verification before the store, parts that do not fit."""

from __future__ import annotations

from pathlib import Path

import bentoml
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import SlicedAttnProcessor
from PIL import Image

from pipeline.errors import ModelError
from pipeline.optimise.context import cross_attentions
from pipeline.optimise.packaged import speed_up
from pipeline.optimise.packages import Program, Programs
from pipeline.optimise.precision import dtypes_of, in_precision, set_precision
from pipeline.optimise.prepared import PreparedDenoiser
from pipeline.packaging.package import animate_probe, package
from pipeline.serve.engine import Animator, load_pipeline
from pipeline.serve.request import AnimationRequest
from pipeline.serve.sources import open_checkpoint
from pipeline.serve.store import describe, resolve, save_to_store, write_package

FIGURES = {"motion_accuracy": 0.9, "clips": 2, "precision": "float32"}


def versions() -> list[str]:
    return [str(model.tag) for model in bentoml.models.list("animator")]


def dtypes(animator: Animator) -> set[torch.dtype]:
    parts = (animator.pipe.unet, animator.pipe.vae, animator.pipe.text_encoder, animator.pipe.image_encoder)
    return {part.dtype for part in parts}


def test_packaging_in_half_precision_leaves_the_source_as_it_came(teacher_folder):
    source = open_checkpoint(teacher_folder)
    before, weights = animate_probe(source), source.pipe.unet.conv_in.weight.clone()
    packaged = package(source, FIGURES, precision="bfloat16")
    assert dtypes(source) == {torch.float32}
    assert torch.equal(source.pipe.unet.conv_in.weight, weights)
    assert np.array_equal(animate_probe(source), before)
    assert dtypes(packaged.animator) == {torch.bfloat16}
    # Figures that were taken in another precision are not this model's.
    assert packaged.info.metrics == {}
    assert "Not judged" in (packaged.path / "README.md").read_text()


def test_figures_of_the_same_precision_are_published(teacher_folder):
    packaged = package(open_checkpoint(teacher_folder), {**FIGURES, "precision": "bfloat16"}, precision="bfloat16")
    assert packaged.info.metrics == {"motion_accuracy": 0.9, "clips": 2}


def test_a_model_that_animates_differently_never_is_in_the_store(teacher_folder):
    before = versions()
    source = open_checkpoint(teacher_folder)
    # What is in memory is not what is saved: a hook changes the first, and is not part of the second.
    source.pipe.unet.register_forward_hook(lambda _module, _inputs, output: (output[0] + 1,))
    with pytest.raises(ModelError, match=r"animates differently from tiny \(by up to \d+ of 255\); not kept"):
        package(source, FIGURES)
    assert versions() == before


def test_a_precision_that_shows_is_refused(teacher_folder):
    before = versions()
    source = open_checkpoint(teacher_folder)

    def coarse(module: torch.nn.Module, _inputs: object, output: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return output if module.dtype is torch.float32 else (output[0] * 0,)

    source.pipe.unet.register_forward_hook(coarse)
    with pytest.raises(ModelError, match="not kept"):
        package(source, FIGURES, precision="bfloat16")
    assert versions() == before
    assert dtypes(source) == {torch.float32}


def test_a_check_sees_the_package_before_the_store_has_it(teacher_folder):
    pipe = load_pipeline(teacher_folder)
    before, seen = versions(), []

    def check(folder: Path, tag: str) -> None:
        seen.append((Animator.load(folder, name=tag).name, versions()))

    model = save_to_store(pipe, describe(pipe, "tiny", {}), "# card", check=check)
    assert seen == [(str(model.tag), before)]
    assert resolve("animator:latest")[0] == str(model.tag)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_package_in_half_precision_is_loaded_so_at_once(teacher_folder, tmp_path, precision):
    pipe = load_pipeline(teacher_folder)
    set_precision(pipe, getattr(torch, precision))
    info = describe(pipe, "tiny", {}).changed(precision={"default": precision})
    write_package(pipe, tmp_path / "model", info, "# card")
    loaded = load_pipeline(tmp_path / "model", dtype=dtypes_of(tmp_path / "model", precision))
    for name in ("unet", "vae", "text_encoder", "image_encoder"):
        assert getattr(loaded, name).dtype is getattr(pipe, name).dtype, name
    clip = Animator.load(tmp_path / "model").animate(grey(), AnimationRequest("a ball", seed=1)).clip
    expected = Animator(pipe, info, "x").animate(grey(), AnimationRequest("a ball", seed=1)).clip
    # Loaded weights lie elsewhere in memory, and sums may round differently there.
    assert np.abs(clip.astype(int) - expected.astype(int)).max() <= 2


def grey() -> Image.Image:
    return Image.new("RGB", (32, 32), (120, 100, 90))


def test_a_copy_in_another_precision_leaves_what_is_shared_as_it_is(teacher_folder):
    pipe = load_pipeline(teacher_folder)
    cast = in_precision(pipe, torch.bfloat16)
    assert (cast.unet.dtype, cast.vae.dtype) == (torch.bfloat16, torch.bfloat16)
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    assert in_precision(pipe, torch.float32) is pipe


def test_a_program_that_does_not_fit_leaves_the_other_parts_in_place(teacher_folder, tmp_path):
    pipe = load_pipeline(teacher_folder)
    programs = tmp_path / "programs"
    programs.mkdir()
    program = Program(
        file="step.pt2", sha256="", component="step", device="another", torch="0", dtype="float32", shapes=((1,),),
        weights="", build_s=1,
    )  # fmt: skip
    (programs / "programs.json").write_text(Programs(programs=(program,)).model_dump_json())
    info = describe(pipe, "tiny", {}).changed(runtime="aot")
    write_package(pipe, tmp_path / "model", info, "# card", programs)
    animator = Animator.load(tmp_path / "model")
    assert (animator.runtime, type(animator.pipe.denoiser)) == ("eager", PreparedDenoiser)
    assert animator.fallback.startswith("aot: step.pt2 was compiled for device another")
    assert animator.fallback.endswith("; the network runs without it, slower")


def test_a_unet_that_cannot_be_prepared_animates_all_the_same(teacher_folder, tmp_path):

    pipe = load_pipeline(teacher_folder)
    next(iter(cross_attentions(pipe.unet).values())).set_processor(SlicedAttnProcessor(1))
    faster = speed_up(pipe, "torchscript", tmp_path)
    assert not faster.programs
    assert len(faster.skipped) == 1
    assert "a processor of its own" in faster.skipped[0]


def test_a_runtime_that_there_is_not_is_named(teacher_folder, tmp_path):
    with pytest.raises(ValueError, match=r"^runtime: 'jit' is not one of eager, torchscript, compile, aot"):
        speed_up(load_pipeline(teacher_folder), "jit", tmp_path)
