"""Checkpoints and calls that a family cannot use are refused on one line that names the thing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline import ImageAnimationPipeline
from pipeline.errors import ModelError
from pipeline.serve.engine import load_pipeline

from .small_checkpoints import SMALL, t5_config

Spoil = Callable[[Path], None]

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8))


class Folders(dict[str, Path]):
    """Folders of small checkpoints by kind, each written when it is first asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def __missing__(self, kind: str) -> Path:
        self[kind] = self._root / kind
        SMALL[kind]().save_pretrained(self[kind])
        return self[kind]


class Pipelines(dict[str, ImageAnimationPipeline]):
    """Our pipelines by kind, each loaded when it is first asked for."""

    def __init__(self, folders: Folders) -> None:
        super().__init__()
        self._folders = folders

    def __missing__(self, kind: str) -> ImageAnimationPipeline:
        self[kind] = load_pipeline(self._folders[kind])
        self[kind].set_progress_bar_config(disable=True)
        return self[kind]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    return Folders(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def pipelines(folders) -> Pipelines:
    return Pipelines(folders)


def index(**changes: Any) -> Spoil:
    """Change entries of `model_index.json`."""

    def spoil(folder: Path) -> None:
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return spoil


def without_folder(component: str) -> Spoil:
    return lambda folder: shutil.rmtree(folder / component)


def config(component: str, file: str = "config.json", **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / component / file
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return spoil


def weights_file(folder: Path, component: str) -> Path:
    (path,) = (folder / component).glob("*.safetensors")
    return path


def cut(component: str, share: float) -> Spoil:
    """Keep the first part of a file of weights, as a download that broke off."""

    def spoil(folder: Path) -> None:
        path = weights_file(folder, component)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return spoil


def not_finite(component: str, value: float) -> Spoil:
    """Put a value into the last two tensors, by name, that hold fractions."""

    def spoil(folder: Path) -> None:
        path = weights_file(folder, component)
        tensors = load_file(path)
        for name in broken_keys(tensors):
            tensors[name].view(-1)[0] = value
        save_file(tensors, path, {"format": "pt"})

    return spoil


def broken_keys(tensors: dict[str, torch.Tensor]) -> list[str]:
    return sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())[-2:]


NOTHING = [None, None]

SPOILT: dict[str, tuple[str, Spoil, str]] = {
    "wan without a VAE": ("wan-2.1", index(vae=NOTHING), r"vae: model_index.json names none; .*wan family"),
    "wan without the VAE's folder": ("wan-2.1", without_folder("vae"), r"vae: no folder vae"),
    "svd without an image encoder": ("svd", index(image_encoder=NOTHING), r"image_encoder: .*names none"),
    "ltx without a tokenizer": ("ltx", without_folder("tokenizer"), r"tokenizer: no folder tokenizer"),
    "cogvideox without a scheduler": ("cogvideox", index(scheduler=NOTHING), r"scheduler: .*names none"),
    "hunyuan without a guider": ("hunyuanvideo-1.5", index(guider=NOTHING), r"guider: .*names none"),
    "another VAE": (
        "wan-2.1",
        index(vae=["diffusers", "AutoencoderKL"]),
        r"vae: AutoencoderKL is not AutoencoderKLWan",
    ),
    "another text encoder": (
        "ltx",
        index(text_encoder=["transformers", "CLIPTextModel"]),
        r"text_encoder: CLIPTextModel is not T5EncoderModel",
    ),
    "another network": (
        "svd",
        index(unet=["diffusers", "UNet2DConditionModel"]),
        r"unet: UNet2DConditionModel is not UNetSpatioTemporalConditionModel",
    ),
    "a scheduler of noise levels": (
        "wan-2.1",
        lambda folder: (
            index(scheduler=["diffusers", "DDIMScheduler"])(folder),
            config(
                "scheduler",
                "scheduler_config.json",
                _class_name="DDIMScheduler",
                prediction_type="epsilon",
                use_flow_sigmas=False,
            )(folder),
        )[0],
        r"scheduler: DDIMScheduler .*takes schedulers of flow matching",
    ),
    "half the weights": ("wan-2.1", cut("transformer", 0.5), r"transformer: cannot be loaded: "),
    "hardly any weights": ("svd", cut("vae", 0.001), r"vae: cannot be loaded: "),
    "an empty file of weights": ("cogvideox", cut("transformer", 0), r"transformer: cannot be loaded: "),
    "half a text encoder": ("ltx", cut("text_encoder", 0.5), r"text_encoder: cannot be loaded: "),
    "weights of another width": (
        "cogvideox",
        config("transformer", text_embed_dim=16),
        r"transformer: its weights do not fit its config.json: .*text_proj",
    ),
    "one expert of two": (
        "wan-2.2-a14b",
        index(transformer_2=NOTHING),
        r"transformer_2: missing; a Wan checkpoint of two experts has both",
    ),
    "the other expert of two": (
        "wan-2.2-a14b",
        without_folder("transformer"),
        r"transformer: no folder transformer",
    ),
    "two experts without a boundary": (
        "wan-2.2-a14b",
        index(boundary_ratio=None),
        r"boundary_ratio: missing in model_index.json",
    ),
    "a boundary that is no share": (
        "wan-2.2-a14b",
        index(boundary_ratio=875),
        r"boundary_ratio: 875 is not within 0 to 1",
    ),
    "wan 2.1 without its image encoder": (
        "wan-2.1",
        index(image_encoder=NOTHING),
        r"image_encoder: missing; .*attends to CLIP's tokens",
    ),
    "wan 2.1 without its image processor": (
        "wan-2.1",
        index(image_processor=NOTHING),
        r"image_processor: missing; .*attends to CLIP's tokens",
    ),
    "wan for text alone": ("wan-2.1", index(_class_name="WanPipeline"), "take a checkpoint of WanImageToVideoPipeline"),
    "cogvideox for text alone": (
        "cogvideox",
        index(_class_name="CogVideoXPipeline"),
        "take a checkpoint of CogVideoXImageToVideoPipeline",
    ),
    "hunyuan for text alone": (
        "hunyuanvideo-1.5",
        index(_class_name="HunyuanVideo15Pipeline"),
        "take a checkpoint of HunyuanVideo15ImageToVideoPipeline",
    ),
    "a guider of another kind": (
        "hunyuanvideo-1.5",
        config("guider", "guider_config.json", guidance_rescale=0.5),
        r"guider: guidance_rescale 0\.5 is not 0\.0",
    ),
}


def refused(folder: Path) -> str:
    """Return why a folder is refused, which is said on one line."""
    with pytest.raises(ModelError) as caught:
        load_pipeline(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_checkpoint_is_refused_by_the_name_of_what_is_wrong(folders, tmp_path, name):
    kind, spoil, pattern = SPOILT[name]
    folder = tmp_path / "spoilt"
    shutil.copytree(folders[kind], folder)
    spoil(folder)
    message = refused(folder)
    assert re.search(pattern, message), message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("kind", "component"),
    [
        ("wan-2.2-a14b", "transformer_2"),
        ("wan-2.1", "image_encoder"),
        ("svd", "unet"),
        ("ltx", "text_encoder"),
        ("cogvideox", "vae"),
    ],
)
def test_weights_that_are_not_finite_are_named_by_component_and_first_key(folders, tmp_path, kind, component, value):
    folder = tmp_path / "spoilt"
    shutil.copytree(folders[kind], folder)
    keys = broken_keys(load_file(weights_file(folder, component)))
    not_finite(component, value)(folder)
    message = refused(folder)
    named = [key for key in keys if f"{component}: {key} holds NaN or infinity" in message]
    assert len(named) == 1, message


@pytest.mark.parametrize("kind", ["wan-2.1", "ltx", "cogvideox"])
def test_a_text_encoder_of_another_checkpoint_is_named_with_both_widths(pipelines, kind):
    parts = pipelines[kind].components
    other = type(parts["text_encoder"])(t5_config(type(parts["text_encoder"].config), 128, width=16))
    with pytest.raises(ValueError, match=r"^text_encoder: its tokens have 16 numbers, and the network takes 32"):
        ImageAnimationPipeline(**{**parts, "text_encoder": other})


def test_a_vae_of_another_checkpoint_is_named(pipelines):
    parts = pipelines["ltx"].components
    other = type(parts["vae"]).from_config(parts["vae"].config, latent_channels=16)
    with pytest.raises(ValueError, match=r"^vae: its latents have 16 channels, and the transformer takes 8"):
        ImageAnimationPipeline(**{**parts, "vae": other})


CALLS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a prompt for svd": ("svd", {"prompt": "a red circle"}, r"prompt: the svd family animates by the picture alone"),
    "a negative prompt for svd": ("svd", {"negative_prompt": "blur"}, r"negative_prompt: the svd family"),
    "no prompt": ("wan-2.1", {"prompt": None}, r"prompt: give it"),
    "two prompts for one picture": ("ltx", {"prompt": ["a", "b"]}, r"prompt: 2 prompts for 1 pictures"),
    "a number for a prompt": ("cogvideox", {"prompt": [3]}, r"prompt: not text"),
    "a last picture for ltx": ("ltx", {"last_image": PICTURE}, r"last_image: this checkpoint of the ltx family"),
    "a last picture for svd": ("svd", {"last_image": PICTURE}, r"last_image: this checkpoint of the svd family"),
    "a last picture for cogvideox": (
        "cogvideox",
        {"last_image": PICTURE},
        r"last_image: this checkpoint of the cogvideox family",
    ),
    "a last picture for wan 2.1": (
        "wan-2.1",
        {"last_image": PICTURE},
        r"last_image: this checkpoint of the wan family",
    ),
    "a last picture for wan 2.2 5B": (
        "wan-2.2-ti2v",
        {"last_image": PICTURE},
        r"last_image: this checkpoint of the wan family",
    ),
    "no last picture where there are two": ("wan-2.1-flf", {}, r"last_image: missing; .*between two pictures"),
    "too many last pictures": ("wan-2.1-flf", {"last_image": [PICTURE] * 2}, r"last_image: 2 pictures .* for 1"),
    "image guidance for ltx": ("ltx", {"image_guidance_scale": 2.0}, r"image_guidance_scale: the ltx family cannot do"),
    "image guidance out of range": ("wan-2.1", {"image_guidance_scale": 101.0}, r"image_guidance_scale: 101.*0 to 100"),
    "guidance that is no number": ("wan-2.1", {"guidance_scale": float("nan")}, r"guidance_scale: nan is outside"),
    "guidance in words": ("ltx", {"guidance_scale": "much"}, r"guidance_scale: much is outside 0 to 100"),
    "half a frame": ("svd", {"num_frames": 2.5}, r"num_frames: 2.5 is not a whole number"),
    "steps in words": ("wan-2.1", {"num_inference_steps": "few"}, r"num_inference_steps: few is not a whole number"),
    "a step for two noise levels": ("ltx", {}, r"num_inference_steps: 1 is below 2"),
    "no steps": ("cogvideox", {"num_inference_steps": 0}, r"num_inference_steps: 0 is below 1"),
    "a control of another family": (
        "wan-2.2-a14b",
        {"motion_scale": 1},
        r"motion_scale: the wan family has no such control; it has guidance_scale_2",
    ),
    "a control where there is none": ("cogvideox", {"motion": 1}, r"motion: the cogvideox family has no such control"),
    "a control below its range": ("wan-2.2-a14b", {"guidance_scale_2": 0.5}, r"guidance_scale_2: 0.5 is outside 1 to"),
    "a control above its range": ("ltx-timestep", {"decode_timestep": 2}, r"decode_timestep: 2 is outside 0 to 1"),
    "a control that is no number": (
        "ltx-timestep",
        {"decode_noise_scale": "much"},
        r"decode_noise_scale: 'much' is not a number",
    ),
    "a control that is NaN": ("svd", {"noise_aug_strength": float("nan")}, r"noise_aug_strength: nan is outside"),
    "a control in fractions": ("svd", {"motion_bucket_id": 12.5}, r"motion_bucket_id: 12.5 is not a whole number"),
    "an infinite control": ("svd", {"motion_bucket_id": float("inf")}, r"motion_bucket_id: inf is outside"),
    "another size than was learned": (
        "cogvideox-learned",
        {"height": 64, "width": 64},
        r"height: 64 is not 32, the one for which",
    ),
    "clip_skip without CLIP": ("wan-2.1", {"clip_skip": 1}, r"clip_skip: the wan family has no text encoder of CLIP"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_a_family_cannot_do_is_refused_by_the_name_of_the_argument(pipelines, name):
    kind, given, pattern = CALLS[name]
    pipe = pipelines[kind]
    arguments: dict[str, Any] = {"prompt": "a red circle moves up"} if pipe.family.takes_prompt else {}
    arguments |= {"height": 32, "width": 64, "num_frames": 9, "num_inference_steps": 1, **given}
    with pytest.raises(ValueError, match=f"^{pattern}") as caught:
        pipe(PICTURE, **arguments)
    assert "\n" not in str(caught.value)


def latents(pipe: ImageAnimationPipeline, **scales: Any) -> torch.Tensor:
    clip = pipe(
        PICTURE,
        "a red circle moves up",
        negative_prompt="a picture",
        height=32,
        width=64,
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        **scales,
    ).frames
    assert torch.isfinite(clip).all()
    return clip


@pytest.mark.parametrize("kind", ["wan-2.1", "wan-2.2-a14b", "wan-2.2-ti2v"])
def test_wan_guided_by_its_picture_differs_from_wan_guided_by_its_prompt_alone(pipelines, kind):
    pipe = pipelines[kind]
    two = latents(pipe)
    # With a scale of 1 the branch without the picture has no weight, which leaves the two of classic guidance.
    assert torch.allclose(latents(pipe, image_guidance_scale=1.0), two, atol=1e-5)
    three = latents(pipe, image_guidance_scale=3.0)
    made = three[:, :, 1:] - two[:, :, 1:]
    assert made.abs().max() > 1e-3
