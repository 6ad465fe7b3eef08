"""Folders as published, and as we write them."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.pipelines.deprecated.i2vgen_xl.pipeline_i2vgen_xl import I2VGenXLPipeline
from diffusers.pipelines.deprecated.pia.pipeline_pia import PIAPipeline

from pipeline import ImageAnimationPipeline
from pipeline.errors import ModelError
from pipeline.model.diffusers_folder import save_changed
from pipeline.model.solver import log_snr_solver
from pipeline.serve.engine import load_pipeline
from pipeline.serve.sources import open_model

PROMPT = "a red circle moves right"


def frames_of(pipe, image, **arguments):
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    prompt = {"prompt": PROMPT, "num_frames": 3, "num_inference_steps": 2, "output_type": "np"}
    return pipe(image=image, generator=torch.Generator().manual_seed(0), **{**prompt, **arguments}).frames


def index_of(folder):
    return json.loads((folder / "model_index.json").read_text())


@pytest.mark.parametrize(
    ("reference", "name"), [("i2vgen_reference", "I2VGenXLPipeline"), ("pia_reference", "PIAPipeline")]
)
def test_a_folder_that_diffusers_wrote_loads_as_it_is(request, reference, name, tmp_path, picture, equal_weights):
    reference = request.getfixturevalue(reference)
    reference.save_pretrained(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert index_of(tmp_path)["_class_name"] == name

    loaded = ImageAnimationPipeline.from_pretrained(tmp_path)

    assert equal_weights(reference, loaded)
    expected = frames_of(reference, picture(), guidance_scale=4.0, height=32, width=32, clip_skip=None)
    given = frames_of(loaded, picture(), guidance_scale=4.0, height=32, width=32, clip_skip=None)
    assert np.abs(expected - given).max() <= 1e-4
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("reference", ["i2vgen_reference", "pia_reference"])
@pytest.mark.parametrize("shard", [None, "20KB"])
def test_a_folder_with_fp16_files_alone_loads_without_being_told(request, reference, shard, tmp_path, picture):
    reference = request.getfixturevalue(reference)
    arguments = {} if shard is None else {"max_shard_size": shard}
    reference.save_pretrained(tmp_path, variant="fp16", **arguments)
    assert all(".fp16" in file.name for file in tmp_path.rglob("*.safetensors"))
    if shard:
        assert len(list(tmp_path.glob("unet/*.safetensors"))) > 1

    loaded = ImageAnimationPipeline.from_pretrained(tmp_path)

    expected = frames_of(reference, picture(), guidance_scale=4.0, height=32, width=32, clip_skip=None)
    given = frames_of(loaded, picture(), guidance_scale=4.0, height=32, width=32, clip_skip=None)
    assert np.abs(expected - given).max() <= 1e-4


@pytest.fixture
def hub(i2vgen_reference, tmp_path) -> Path:
    """A cache of the hub that has one checkpoint, in half precision alone, and no network."""
    repository = tmp_path / "models--someone--halves"
    snapshot = repository / "snapshots" / ("0" * 40)
    halves = {
        name: copy.deepcopy(part).half() if isinstance(part, torch.nn.Module) else part
        for name, part in i2vgen_reference.components.items()
    }
    type(i2vgen_reference)(**halves).save_pretrained(snapshot, variant="fp16")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return tmp_path


def test_a_repository_with_fp16_files_alone_loads_without_being_told(hub, i2vgen_reference, picture):
    loaded = ImageAnimationPipeline.from_pretrained("someone/halves", cache_dir=hub)
    arguments = {"height": 32, "width": 32, "clip_skip": None, "guidance_scale": 2.0}
    difference = frames_of(i2vgen_reference, picture(), **arguments) - frames_of(loaded, picture(), **arguments)
    assert np.abs(difference).max() < 0.05


def test_a_hub_id_is_a_model_for_every_command(hub, tmp_path, picture):
    picture().save(tmp_path / "photo.png")
    given = ["--image", str(tmp_path / "photo.png"), "--prompt", "x", "--out", str(tmp_path / "clip.gif")]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "animate", "--model", "someone/halves", *given, "--frames", "2"],
        env={**os.environ, "HF_HUB_CACHE": str(hub)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "model someone/halves" in done.stderr


@pytest.mark.parametrize("source", ["someone/some-model", "animator/latest"])
def test_a_hub_id_that_is_not_reached_says_so(source):
    with pytest.raises(ModelError, match=f"^{source}: not a folder here, and the hub could not give it"):
        open_model(source)


def test_one_component_with_fp16_files_alone_is_enough_to_look_for_them(i2vgen_reference, tmp_path, equal_weights):
    i2vgen_reference.save_pretrained(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert equal_weights(i2vgen_reference, ImageAnimationPipeline.from_pretrained(tmp_path))


@pytest.mark.parametrize("dtype", [{}, {"torch_dtype": torch.float32}])
@pytest.mark.parametrize("reference", ["i2vgen_reference", "pia_reference"])
def test_weights_in_half_precision_give_nearly_the_same_frames(request, reference, dtype, tmp_path, picture):
    reference = request.getfixturevalue(reference)
    halves = {
        name: copy.deepcopy(part).half() if isinstance(part, torch.nn.Module) else part
        for name, part in reference.components.items()
    }
    type(reference)(**halves).save_pretrained(tmp_path, variant="fp16")

    loaded = ImageAnimationPipeline.from_pretrained(tmp_path, **dtype)

    arguments = {"height": 32, "width": 32, "clip_skip": None, "guidance_scale": 2.0}
    difference = frames_of(reference, picture(), **arguments) - frames_of(loaded, picture(), **arguments)
    assert np.abs(difference).max() < 0.05


def test_a_picture_unet_and_a_motion_adapter_load_as_pia(pia_parts, tmp_path, picture):
    """As PIA is published: a Stable Diffusion folder, and the adapter beside it."""
    reference = PIAPipeline(**pia_parts)
    folder = tmp_path / "stable-diffusion"
    reference.save_pretrained(folder)
    shutil.rmtree(folder / "unet")
    shutil.rmtree(folder / "motion_adapter")
    pia_parts["unet"].save_pretrained(folder / "unet")
    pia_parts["motion_adapter"].save_pretrained(tmp_path / "adapter")
    index = index_of(folder)
    del index["motion_adapter"]
    index.update(
        _class_name="StableDiffusionPipeline",
        unet=["diffusers", "UNet2DConditionModel"],
        safety_checker=[None, None],
        requires_safety_checker=False,
    )
    (folder / "model_index.json").write_text(json.dumps(index))
    adapter = MotionAdapter.from_pretrained(tmp_path / "adapter")
    assert isinstance(UNet2DConditionModel.from_pretrained(folder / "unet"), UNet2DConditionModel)

    loaded = ImageAnimationPipeline.from_pretrained(folder, motion_adapter=adapter)

    assert isinstance(loaded.unet, UNetMotionModel)
    assert loaded.family.name == "pia"
    expected = frames_of(reference, picture(), guidance_scale=4.0, clip_skip=None)
    given = frames_of(loaded, picture(), guidance_scale=4.0, clip_skip=None)
    assert np.abs(expected - given).max() <= 1e-4


@pytest.mark.parametrize("image_scale", [None, 1.5])
def test_what_we_save_loads_to_the_same_weights_and_frames(pipe, tmp_path, picture, equal_weights, image_scale):
    pipe.save_pretrained(tmp_path)
    loaded = ImageAnimationPipeline.from_pretrained(tmp_path)
    assert equal_weights(pipe, loaded)
    expected = frames_of(pipe, picture(), image_guidance_scale=image_scale)
    given = frames_of(loaded, picture(), image_guidance_scale=image_scale)
    # Loaded weights lie elsewhere in memory, and sums may round differently there.
    assert np.allclose(expected, given, atol=1e-5)
    assert not list(tmp_path.rglob("*.bin"))


def test_the_settings_of_a_checkpoint_survive_the_round_trip(i2vgen_parts, tmp_path):
    settings = {
        "image_latents_fill": "repeat",
        "image_latents_mode": "mode",
        "num_inference_steps": 32,
        "guidance_scale": 2.5,
        "image_guidance_scale": 1.5,
        "num_frames": 8,
        "fps": 8,
    }
    ImageAnimationPipeline(**i2vgen_parts, **settings).save_pretrained(tmp_path)
    loaded = ImageAnimationPipeline.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in settings} == settings


def test_the_index_that_we_write_names_only_classes_that_every_install_has(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = index_of(tmp_path)
    named = {tuple(entry) for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None}
    assert {library for library, _ in named} == {"diffusers", "transformers"}
    assert not any(name.endswith(("Pil", "Fast")) for _, name in named)


def test_diffusers_own_class_reads_what_we_write(i2vgen, tmp_path, picture, equal_weights):
    i2vgen.save_pretrained(tmp_path)
    stock = I2VGenXLPipeline.from_pretrained(tmp_path)
    assert equal_weights(stock, i2vgen)
    expected = frames_of(stock, picture(), guidance_scale=4.0, height=32, width=32, clip_skip=None)
    given = frames_of(i2vgen, picture(), guidance_scale=4.0, clip_skip=None)
    assert np.abs(expected - given).max() <= 1e-4


def test_an_unknown_family_is_refused_with_the_known_ones(pia_parts, tmp_path):
    pia_parts = {**pia_parts, "motion_adapter": None}
    unet = UNetMotionModel.from_unet2d(pia_parts["unet"])
    with pytest.raises(ValueError, match=r"^unet: UNetMotionModel with 4 input channels belongs to no family"):
        ImageAnimationPipeline(**{**pia_parts, "unet": unet})
    PIAPipeline(**{**pia_parts, "unet": unet}).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="4 input channels belongs to no family"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing", "/nowhere/at/all"])
def test_a_missing_folder_says_what_was_looked_for(name):
    with pytest.raises(ModelError, match=r"no model_index\.json there; give a folder in diffusers format or a hub id"):
        load_pipeline(name)


def test_a_hub_id_without_a_network_says_what_to_do():
    with pytest.raises(ModelError) as caught:
        load_pipeline("someone/some-model")
    text = str(caught.value)
    assert text.startswith("someone/some-model: ")
    assert "give its folder" in text
    assert "\n" not in text


@pytest.mark.parametrize("damage", ["truncate", "remove", "garbage index", "missing class"])
def test_a_damaged_folder_gives_one_line_that_names_it(i2vgen, tmp_path, damage):
    i2vgen.save_pretrained(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    index = tmp_path / "model_index.json"
    match damage:
        case "truncate":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "remove":
            weights.unlink()
        case "garbage index":
            index.write_text("{")
        case "missing class":
            index.write_text(index.read_text().replace("I2VGenXLUNet", "NoSuchUNet"))
    with pytest.raises(ModelError) as caught:
        load_pipeline(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(caught.value)


def test_an_i2vgen_folder_without_its_image_encoder_says_so(i2vgen_parts, picture):
    parts = {**i2vgen_parts, "image_encoder": None}
    with pytest.raises(ValueError, match=r"^image_encoder: "):
        frames_of(ImageAnimationPipeline(**parts), picture())


@pytest.mark.parametrize(
    ("sample_size", "size"),
    [(8, (32, 32)), ((8, 12), (32, 48)), (None, (704, 1280))],
)
def test_the_size_of_a_clip_comes_from_the_checkpoint(i2vgen, sample_size, size):
    config = {**i2vgen.unet.config, "sample_size": sample_size}
    unet = type(i2vgen.unet).from_config(config)
    made = ImageAnimationPipeline(**{**i2vgen.components, "unet": unet})
    assert made.default_size == size


def test_a_model_of_another_solver_links_the_weights_that_it_has_in_common(teacher_folder, tmp_path):
    pipe, weights = load_pipeline(teacher_folder), "unet/diffusion_pytorch_model.safetensors"
    pipe.scheduler = log_snr_solver(pipe.scheduler)
    save_changed(pipe, tmp_path / "model", pipe.name_or_path, ("scheduler",))
    save_changed(pipe, tmp_path / "model", pipe.name_or_path, ("scheduler",))  # over what an earlier run left
    assert (tmp_path / "model" / weights).samefile(teacher_folder / weights)
    assert not (tmp_path / "model" / "unet" / "config.json").samefile(teacher_folder / "unet" / "config.json")
    again = load_pipeline(tmp_path / "model")
    assert type(again.scheduler) is type(pipe.scheduler)
    assert all(again.config[name] == value for name, value in pipe.config.items() if not name.startswith("_"))
    assert all(torch.equal(a, b) for a, b in zip(again.unet.parameters(), pipe.unet.parameters(), strict=True))


def test_a_component_that_is_not_the_folders_is_written(teacher_folder, tmp_path):
    pipe, weights = load_pipeline(teacher_folder), "unet/diffusion_pytorch_model.safetensors"
    save_changed(pipe, tmp_path / "student", teacher_folder, ("unet",))
    assert not (tmp_path / "student" / weights).samefile(teacher_folder / weights)
    save_changed(pipe, tmp_path / "whole", "owner/name", ())
    assert load_pipeline(tmp_path / "whole").default_size == pipe.default_size
