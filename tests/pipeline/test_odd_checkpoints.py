"""Checkpoints that do not fit, from the corpus in `odd_checkpoints`: refused in one line, and never filled up."""

from __future__ import annotations

import json
import logging
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler, KDPM2DiscreteScheduler, PNDMScheduler
from diffusers.pipelines.deprecated.pia.pipeline_pia import PIAPipeline
from safetensors.torch import load_file, save_file

from pipeline import ImageAnimationPipeline
from pipeline.commands.cli import main
from pipeline.errors import ModelError, NotFiniteError
from pipeline.model.prompts import measure
from pipeline.packaging.package import package
from pipeline.serve.engine import load_pipeline
from pipeline.serve.request import AnimationRequest
from pipeline.serve.sources import open_checkpoint

from . import odd_checkpoints as odd

LONG = "a red circle far away on the wide blue sea moves "


@pytest.fixture
def copied(teacher_folder, tmp_path):
    return shutil.copytree(teacher_folder, tmp_path / "copy")


def refusal_of(folder, load=load_pipeline):
    with pytest.raises(ModelError) as caught:
        load(folder)
    text = str(caught.value)
    assert text.startswith(f"{folder}: ")
    assert "\n" not in text
    return text.removeprefix(f"{folder}: ")


@pytest.mark.parametrize(
    ("part", "name"),
    # One part of transformers and one of diffusers in all ways, the others in one.
    [*product(("text_encoder", "unet"), odd.WEIGHTS), ("image_encoder", "no-keys"), ("vae", "prefix-of-compile")],
)
def test_weights_that_do_not_fit_are_refused_with_part_and_key(copied, part, name):
    odd.spoil_weights(copied, part, name)
    said = refusal_of(copied)
    assert said.startswith(f"{part}: ")
    assert odd.WEIGHTS[name][1] in said


def test_of_a_part_that_does_not_fit_the_first_key_is_named(copied):
    first = min(load_file(copied / "vae" / "diffusion_pytorch_model.safetensors"))
    odd.spoil_weights(copied, "vae", "prefix-of-data-parallel")
    said = refusal_of(copied)
    assert f"missing (first {first})" in said
    assert f"unexpected (first module.{first})" in said


@pytest.mark.parametrize("part", ["motion_adapter", "unet"])
def test_parts_that_are_joined_are_checked_before(pia_parts, tmp_path, part):
    PIAPipeline(**pia_parts).save_pretrained(tmp_path)
    if part == "motion_adapter" and not (tmp_path / part).is_dir():
        pia_parts[part].save_pretrained(tmp_path / part)
        index = json.loads((tmp_path / "model_index.json").read_text())
        index["motion_adapter"] = ["diffusers", "MotionAdapter"]
        (tmp_path / "model_index.json").write_text(json.dumps(index))
    odd.spoil_weights(tmp_path, part, "one-key-missing")
    assert refusal_of(tmp_path).startswith(f"{part}: ")


def test_a_part_in_half_precision_files_is_checked_too(i2vgen, tmp_path):
    i2vgen.save_pretrained(tmp_path, variant="fp16")
    odd.spoil_weights(tmp_path, "text_encoder", "prefix-of-compile")
    assert refusal_of(tmp_path).startswith("text_encoder: ")


def test_what_older_libraries_saved_beside_the_weights_is_no_fault(copied):
    """Text encoders of most published checkpoints hold the positions' numbers, which are no weights."""
    path = copied / "text_encoder" / "model.safetensors"
    save_file(load_file(path) | {"text_model.embeddings.position_ids": torch.arange(20)[None]}, path, {"format": "pt"})
    load_pipeline(copied)


def test_a_part_that_is_given_is_taken_as_it_is(copied, i2vgen_parts):
    odd.spoil_weights(copied, "unet", "no-keys")
    pipe = ImageAnimationPipeline.from_pretrained(copied, unet=i2vgen_parts["unet"])
    assert pipe.unet is i2vgen_parts["unet"]


def test_the_command_says_in_one_line_what_does_not_fit(copied, picture, tmp_path, capsys):
    odd.spoil_weights(copied, "text_encoder", "prefix-of-data-parallel")
    picture().save(tmp_path / "p.png")
    given = ["--image", str(tmp_path / "p.png"), "--prompt", "up", "--out", str(tmp_path / "o.gif"), "--model"]
    assert main(["animate", *given, str(copied)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {copied}: text_encoder: its weights do not fit")


# ------------------------------------------------------------------ tokenizers and prompts


@pytest.mark.parametrize("name", odd.TOKENIZERS)
def test_a_tokenizer_that_knows_no_words_is_refused(copied, name):
    spoil, said = odd.TOKENIZERS[name]
    spoil(copied / "tokenizer")
    assert said in refusal_of(copied)


def test_a_tokenizer_without_a_length_takes_the_encoders(copied, picture):
    odd.without_length(copied)
    animator = open_checkpoint(copied, "cpu")
    assert animator.animate(picture(), AnimationRequest("up", seed=1)).clip.shape[0] == 4
    assert measure(animator.pipe.tokenizer, animator.pipe.text_encoder, LONG).read == 18


def test_a_tokenizer_that_takes_more_than_the_encoder_is_cut_to_it(i2vgen):
    i2vgen.tokenizer.model_max_length = 77
    try:
        assert i2vgen.encode_prompt([LONG], None).shape[1] == 20
    finally:
        i2vgen.tokenizer.model_max_length = 20


@pytest.mark.parametrize(("prompt", "read"), [("a red circle moves up", True), (LONG + "up", False), ("x" * 18, True)])
def test_the_command_says_when_a_prompt_is_read_in_part(teacher_folder, picture, tmp_path, capsys, prompt, read):
    picture().save(tmp_path / "p.png")
    given = ["--image", str(tmp_path / "p.png"), "--out", str(tmp_path / "o.gif"), "--model", str(teacher_folder)]
    assert main(["animate", *given, "--prompt", prompt, "--json"]) == 0
    printed = capsys.readouterr()
    assert ("--prompt is too long: the model read the first 18 of " in printed.err) is not read
    length = json.loads(printed.out)["prompt_length"]
    assert (length["read"] == length["tokens"]) is read


def test_a_call_of_the_pipeline_logs_that_a_prompt_is_read_in_part(i2vgen, caplog):
    with caplog.at_level(logging.WARNING, "pipeline.model.prompts"):
        i2vgen.encode_prompt(["up", LONG], None)
    (record,) = caplog.records
    assert "too long, the model read the first 18 of" in record.getMessage()


# ------------------------------------------------------------------ numbers that are none


def spoilt(pipe, part):
    with torch.no_grad():
        next(iter(getattr(pipe, part).parameters())).fill_(float("nan"))


@pytest.mark.parametrize(("part", "named"), [("unet", "unet"), ("vae", "vae"), ("text_encoder", "unet")])
def test_a_clip_of_numbers_that_are_none_is_an_error(teacher_folder, picture, part, named):
    animator = open_checkpoint(teacher_folder, "cpu")
    with torch.no_grad():
        list(getattr(animator.pipe, part).parameters())[-1].fill_(float("nan"))
        if part == "vae":
            animator.pipe.vae.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(NotFiniteError, match=rf"^({named}|unet): computed NaN or infinity"):
        animator.animate(picture(), AnimationRequest("up", seed=1))
    with pytest.raises(NotFiniteError):
        animator.warm_up()


def test_weights_that_are_no_numbers_are_not_packaged(teacher_folder):
    import bentoml

    source = open_checkpoint(teacher_folder, "cpu")
    spoilt(source.pipe, "image_encoder")
    before = len(bentoml.models.list())
    with pytest.raises(ModelError, match=r"unet: computed NaN or infinity in float32"):
        package(source, {})
    assert len(bentoml.models.list()) == before


# ------------------------------------------------------------------ solvers with more evaluations than steps


@pytest.mark.parametrize(
    ("scheduler", "evaluations"),
    [(HeunDiscreteScheduler, 5), (KDPM2DiscreteScheduler, 5), (lambda: PNDMScheduler(skip_prk_steps=True), 4)],
    ids=["heun", "kdpm2", "pndm"],
)
def test_steps_and_passes_are_those_that_are_made(teacher_folder, tmp_path, picture, scheduler, evaluations):
    pipe = load_pipeline(teacher_folder)
    pipe.register_to_config(num_inference_steps=3)
    pipe.scheduler = scheduler()
    pipe.save_pretrained(tmp_path)
    animator = open_checkpoint(tmp_path, "cpu")
    calls, seen = [], []
    animator.pipe.unet.register_forward_hook(lambda _m, _i, output: calls.append(len(output[0])))
    animation = animator.animate(
        picture(), AnimationRequest("up", seed=1), lambda done, total: seen.append((done, total))
    )
    assert (animation.steps, animation.passes) == (3, sum(calls)) == (3, 3 * evaluations)
    assert seen == [(k + 1, evaluations) for k in range(evaluations)]
    assert animator.info.branches == 3
    assert animator.info.sampling == (
        f"3 steps ({evaluations} evaluations) x 3 guidance branches = {3 * evaluations} U-Net passes"
    )
    assert np.isfinite(animation.clip).all()


def test_evaluate_counts_the_passes_of_such_a_solver(teacher_folder, tmp_path, capsys):
    pipe = load_pipeline(teacher_folder)
    pipe.scheduler = HeunDiscreteScheduler()
    pipe.save_pretrained(tmp_path)
    assert main(["evaluate", "--model", str(tmp_path), "--clips", "1", "--steps", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["steps"], result["passes"]) == (3, 15)
