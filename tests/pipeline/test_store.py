"""A packaged model is loaded only if it is, to the byte, what was packaged."""

from __future__ import annotations

import json
import pickle
import shutil
import stat

import numpy as np
import pytest
from PIL import Image

from pipeline import ImageAnimationPipeline
from pipeline.errors import ModelError
from pipeline.model.controls import Control
from pipeline.serve.engine import Animator
from pipeline.serve.manifest import INFO_FILE, ModelInfo
from pipeline.serve.request import AnimationRequest
from pipeline.serve.store import describe, digests, resolve, save_to_store, verify, write_package

METRICS = {"motion_accuracy": 0.98, "seed": 7, "note": None}
CARD = "# A model\n\nFor tests.\n"


@pytest.fixture(scope="module")
def small_pipe(i2vgen_parts):
    return ImageAnimationPipeline(
        **i2vgen_parts, image_latents_mode="mode", num_inference_steps=2, guidance_scale=2.0,
        image_guidance_scale=1.5, num_frames=3, fps=8,
    )  # fmt: skip


@pytest.fixture(scope="module")
def packaged(small_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_package(small_pipe, folder, describe(small_pipe, "random", METRICS), CARD)
    return folder


@pytest.fixture
def package(packaged, tmp_path):
    """A packaged model that a test may damage."""
    return shutil.copytree(packaged, tmp_path / "model")


def reason_of_refusal(folder):
    with pytest.raises(ModelError) as caught:
        verify(folder)
    with pytest.raises(ModelError):
        Animator.load(folder)
    reason = str(caught.value)
    assert str(folder) in reason
    assert "\n" not in reason
    return reason


def rewrite_info(folder, **changes):
    content = json.loads((folder / INFO_FILE).read_text())
    (folder / INFO_FILE).write_text(json.dumps({**content, **changes}))


def test_a_package_says_what_it_is(package):
    info = verify(package)
    assert info == ModelInfo(
        teacher="random",
        family="i2vgen-xl",
        steps=2,
        passes=6,
        guidance_scale=2.0,
        image_guidance_scale=1.5,
        guidance_distilled=False,
        runtime="eager",
        precision={"default": "float32"},
        frames=3,
        least_frames=2,
        most_frames=3,
        evaluations=2,
        sizes=((32, 32),),
        fps=8,
        controls={"guidance_scale": Control(1, 30, 2.0, about="how much the prompt counts")},
        takes_negative_prompt=True,
        most_steps=100,
        scheduler="DDIMScheduler",
        metrics=METRICS,
        files=info.files,
    )
    assert (package / "README.md").read_text() == CARD


def test_a_description_of_version_1_is_read(package, tmp_path):
    """As written before a model had several sizes, precisions and controls with limits."""
    content = json.loads((package / INFO_FILE).read_text())
    for name in ("version", "sizes", "evaluations", "frame_step", "takes_negative_prompt", "most_steps", "controls"):
        del content[name]
    old = {**content, "height": 24, "width": 40, "precision": "float16", "controls": ["motion_scale", "guidance_scale"]}
    (tmp_path / INFO_FILE).write_text(json.dumps({**old, "guidance_range": [1.0, 4.0]}))
    info = ModelInfo.read(tmp_path)
    assert (info.height, info.width, info.dtype, info.evaluations) == (24, 40, "float16", 2)
    assert {name: (control.least, control.most) for name, control in info.controls.items()} == {
        "motion_scale": (0, 8),
        "guidance_scale": (1.0, 4.0),
    }


def test_every_file_is_listed_with_its_digest(package):
    names = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()} - {INFO_FILE}
    info = verify(package)
    assert set(info.files) == names
    assert info.files == digests(package)
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "README.md"} <= names
    assert all(len(digest) == 64 for digest in info.files.values())


def test_anyone_may_read_a_package_and_only_its_owner_write_it(package):
    for path in (package, *package.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "README.md", "tokenizer/tokenizer_config.json"]
)
def test_a_changed_file_is_named(package, name):
    content = bytearray((package / name).read_bytes())
    content[-1] ^= 1
    (package / name).write_bytes(content)
    assert f"{name} has been changed or damaged" in reason_of_refusal(package)


def test_a_truncated_file_is_named(package):
    path = package / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert "vae/diffusion_pytorch_model.safetensors has been changed" in reason_of_refusal(package)


def test_a_missing_file_is_named(package):
    (package / "scheduler" / "scheduler_config.json").unlink()
    assert "scheduler/scheduler_config.json is missing" in reason_of_refusal(package)


@pytest.mark.parametrize("name", ["unet/extra.safetensors", "hook.py", "unet/pytorch_model.bin"])
def test_a_file_that_was_not_packaged_is_named(package, name):
    (package / name).write_bytes(b"x")
    assert f"{name} is not in {INFO_FILE}" in reason_of_refusal(package)


@pytest.mark.parametrize(
    "name",
    [
        "unet/pytorch_model.bin",
        "weights.pt",
        "pipeline.py",
        "model.pkl",
        "run.so",
        "unet/chat_template.jinja",
        "NOSUFFIX",
    ],
)
def test_a_file_that_could_run_code_is_refused_even_when_its_digest_is_right(package, name):
    (package / name).write_bytes(pickle.dumps({"weights": 1}))
    rewrite_info(package, files=digests(package))
    assert f"{name} is of a kind that a model may not hold" in reason_of_refusal(package)


def test_the_chat_template_of_a_tokenizer_is_part_of_a_model(package):
    (package / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")
    rewrite_info(package, files=digests(package))
    verify(package)


def test_a_listed_file_outside_of_the_folder_is_not_looked_at(package, tmp_path):
    (tmp_path / "outside.json").write_text("{}")
    files = {**digests(package), "../outside.json": "0" * 64}
    rewrite_info(package, files=files)
    assert "../outside.json is missing" in reason_of_refusal(package)


def test_a_folder_without_a_description_says_how_to_make_one(package):
    (package / INFO_FILE).unlink()
    assert f"no {INFO_FILE}; package the model with" in reason_of_refusal(package)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"teacher": "x"}', '{"unknown": 1}', "\xff"])
def test_a_description_that_is_none_is_refused(package, content):
    (package / INFO_FILE).write_bytes(content.encode("latin-1"))
    assert "not a model description" in reason_of_refusal(package)


@pytest.mark.parametrize("files", [[], None, "x", {"README.md": 3}, 7])
def test_a_list_of_files_that_is_none_is_refused(package, files):
    rewrite_info(package, files=files)
    assert reason_of_refusal(package)


def test_what_bentoml_adds_is_no_damage(package):
    (package / "model.yaml").write_text("name: animator\n")
    assert verify(package).teacher == "random"


def test_a_packaged_model_animates_as_its_source_does(package, small_pipe):
    info = verify(package)
    request = AnimationRequest(prompt="a red circle moves right", seed=3)
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    small_pipe.set_progress_bar_config(disable=True)
    expected = Animator(small_pipe, info, "source").animate(image, request)
    given = Animator.load(package).animate(image, request)
    # Loaded weights lie elsewhere in memory, and sums may round differently there.
    assert np.abs(expected.clip.astype(int) - given.clip.astype(int)).max() <= 1
    assert given.clip.shape == (3, 32, 32, 3)
    assert (given.steps, given.passes, given.seed, given.fps) == (2, 6, 3, 8)


def test_a_model_of_the_store_is_found_by_its_tag_and_checks(small_pipe):
    saved = save_to_store(small_pipe, describe(small_pipe, "random", METRICS), CARD)
    assert saved.tag.name == "animator"
    for tag in (str(saved.tag), "animator:latest"):
        name, folder = resolve(tag)
        assert name == str(saved.tag)
        assert verify(folder).metrics == METRICS
    assert saved.info.labels["family"] == "i2vgen-xl"
    later = save_to_store(small_pipe, describe(small_pipe, "later", {}), CARD)
    assert verify(resolve("animator:latest")[1]).teacher == "later"
    assert verify(resolve(str(saved.tag))[1]).teacher == "random"
    assert later.tag != saved.tag


def test_a_folder_is_found_by_its_path(package):
    assert resolve(str(package)) == ("model", package)


@pytest.mark.parametrize("tag", ["nothing", "nothing:latest", "no/such/folder", "", "a:b:c", "Ünicode!"])
def test_what_is_neither_a_folder_nor_in_the_store_says_how_to_make_one(tag):
    with pytest.raises(ModelError, match=r"neither a folder nor a model in the BentoML store; `make demo`"):
        resolve(tag)


def test_a_package_does_not_say_where_its_parts_were_loaded_from(small_pipe, tmp_path):
    small_pipe.save_pretrained(tmp_path / "source")
    loaded = type(small_pipe).from_pretrained(tmp_path / "source")
    write_package(loaded, tmp_path / "package", describe(loaded, "random", METRICS), CARD)
    said = [path.read_text() for path in (tmp_path / "package").rglob("*.json")]
    assert said
    assert not [text for text in said if str(tmp_path) in text]
