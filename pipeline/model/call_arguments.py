"""Arguments of one call of the pipeline: brought into one form, and checked.

What does not fit raises a `ValueError` whose text begins with the argument's name, and says which values would do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from .families import Family, Generators, Parts
from .guidance import is_number

Texts = list[str] | Tensor
"""Texts, or what the text encoder makes of them, `(batch, tokens, width)`."""


def broadcast(
    family: Family,
    width: int,
    image: Image | Sequence[Image],
    prompt: str | Sequence[str] | None,
    negative: str | Sequence[str] | None,
    prompt_embeds: Tensor | None,
    negative_embeds: Tensor | None,
) -> tuple[list[Image], Texts, Texts]:
    """Return pictures, prompts and negative prompts, as many of each; of a family without a prompt, empty texts.

    Args:
        width: of the text encoder.
        prompt_embeds, negative_embeds: in place of the texts, `(batch, tokens, width)`.
    """
    images = list(image) if isinstance(image, Sequence) else [image]
    if not family.takes_prompt:
        for name, given in (("prompt", prompt), ("negative_prompt", negative)):
            if any([given] if isinstance(given, str) else given or ()):
                raise ValueError(f"{name}: the {family.name} family animates by the picture alone; leave it out")
        if prompt_embeds is not None or negative_embeds is not None:
            raise ValueError(f"prompt_embeds: the {family.name} family has no text encoder; leave them out")
        return images, [""] * len(images), [""] * len(images)
    full = _texts("prompt", prompt, prompt_embeds, width)
    if full is None:
        raise ValueError("prompt: give it, or prompt_embeds")
    if len(images) != len(full):
        raise ValueError(f"prompt: {len(full)} prompts for {len(images)} pictures")
    other = _texts("negative_prompt", negative, negative_embeds, width)
    if other is None or isinstance(negative, str):
        other = [negative if isinstance(negative, str) else family.negative_prompt] * len(images)
    if len(other) != len(images):
        raise ValueError(f"negative_prompt: {len(other)} texts for {len(images)} prompts")
    return images, full, other


def _texts(name: str, text: Any, embeds: Tensor | None, width: int) -> Texts | None:
    if embeds is None:
        if text is None:
            return None
        texts: list[Any] = list(text) if isinstance(text, Sequence) and not isinstance(text, str) else [text]
        if not all(isinstance(one, str) for one in texts):
            raise ValueError(f"{name}: not text")
        return texts
    if text is not None:
        raise ValueError(f"{name}_embeds: {name} is given too; give one of them")
    if embeds.ndim != 3 or embeds.shape[-1] != width:
        raise ValueError(f"{name}_embeds: shape {tuple(embeds.shape)} is not (batch, tokens, {width})")
    return embeds


def repeat_each(values: Any, times: int) -> Any:
    """Return each value of a list, or row of a tensor, several times, one after the other."""
    if isinstance(values, Tensor):
        return values.repeat_interleave(times, dim=0)
    return [value for value in values for _ in range(times)]


def check_counts(**counts: int) -> None:
    """Refuse numbers of frames, steps or frames per second, by the argument's name, that are not whole and positive."""
    for name, value in counts.items():
        if not is_number(value) or value != value // 1:
            raise ValueError(f"{name}: {value} is not a whole number")
        if value < 1:
            raise ValueError(f"{name}: {value} is below 1")


def check_shape(family: Family, parts: Parts, frames: int, height: int, width: int) -> None:
    """Refuse a number of frames or a size that the family cannot make."""
    step = family.frame_step(parts)
    if (frames - 1) % step:
        below = (frames - 1) // step * step + 1
        raise ValueError(
            f"num_frames: {frames} is not {step} * n + 1, which the {family.name} family makes; near are {below} and "
            f"{below + step}"
        )
    factor = family.size_step(parts)
    least = family.least_blocks * factor
    for name, value in (("height", height), ("width", width)):
        if value % factor or value < least:
            below = max(least, value // factor * factor)
            raise ValueError(
                f"{name}: {value} is not a multiple of {factor} of at least {least}; near are {below} and "
                f"{below + factor}"
            )


def last_images(family: Family, parts: Parts, last: Image | Sequence[Image] | None, count: int) -> list[Image] | None:
    """Return the pictures that clips end with, as many as those that they begin with; None without any."""
    when = family.last_image(parts)
    if last is None:
        if when == "always":
            raise ValueError("last_image: missing; this checkpoint makes clips between two pictures")
        return None
    if when == "never":
        raise ValueError(f"last_image: this checkpoint of the {family.name} family takes none; leave it out")
    images = list(last) if isinstance(last, Sequence) else [last]
    if len(images) != count:
        raise ValueError(f"last_image: {len(images)} pictures to end with for {count} to begin with")
    return images


def checked_controls(family: Family, parts: Parts, given: Mapping[str, Any]) -> dict[str, float]:
    """Return the value of each control of a checkpoint: what is given, or its default."""
    controls = family.controls_of(parts)
    chosen = {name: control.default for name, control in controls.items() if control.default is not None}
    for name, value in given.items():
        if (control := controls.get(name)) is None:
            known = f"; it has {', '.join(controls)}" if controls else "; leave it out"
            raise ValueError(f"{name}: the {family.name} family has no such control{known}")
        if value is None:
            continue
        if not is_number(value):
            raise ValueError(f"{name}: {value!r} is not a number")
        if problem := control.problem(value):
            raise ValueError(f"{name}: {problem}")
        chosen[name] = value
    return chosen


def check_image_scale(family: Family, scale: float | None) -> None:
    """Refuse three-branch guidance where no branch can do without the picture."""
    if scale is not None and not family.drops_picture:
        raise ValueError(
            f"image_guidance_scale: the {family.name} family cannot do without its picture, so there is no branch to "
            "guide away from; leave it out"
        )


def check_clip_skip(family: Family, clip_skip: int | None, text_encoder: Any) -> None:
    """Refuse to leave out more layers of the text encoder than it has, or any where it is not CLIP's."""
    if clip_skip is None:
        return
    if "CLIPTextModel" not in family.components.get("text_encoder", ()):
        raise ValueError(f"clip_skip: the {family.name} family has no text encoder of CLIP; leave it out")
    layers: int = text_encoder.config.num_hidden_layers
    if not 0 <= clip_skip <= layers:
        raise ValueError(f"clip_skip: {clip_skip} is outside 0 to {layers}, the layers of the text encoder")


def check_callback_tensors(names: Sequence[str]) -> None:
    """Refuse names of tensors that a callback cannot be given: the latents are all that there is."""
    for name in names:
        if name != "latents":
            raise ValueError(f"callback_on_step_end_tensor_inputs: {name!r} is not one of latents")


def check_generators(generator: Generators, clips: int) -> None:
    """Refuse a list of generators that is not one for each clip."""
    if isinstance(generator, list) and len(generator) != clips:
        raise ValueError(f"generator: {len(generator)} generators for {clips} clips")


def given_noise(given: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return noise that a caller brings, float32."""
    if tuple(given.shape) != shape:
        raise ValueError(f"latents: shape {tuple(given.shape)} is not {shape}")
    return given.to(device=device, dtype=torch.float32)


def check_components(family: Family, components: Mapping[str, Any]) -> None:
    """Refuse components that are missing or of another class than the family's; the text begins with the component."""
    for name, kinds in family.components.items():
        component = components[name]
        if component is None:
            if name not in family.optional:
                raise ValueError(f"{name}: missing; a checkpoint of the {family.name} family has one")
            continue
        # A component that is wrapped or specialised is one of its class all the same.
        if kinds and not any(kind.__name__ in kinds for kind in type(component).__mro__):
            raise ValueError(f"{name}: {type(component).__name__} is not {' or '.join(kinds)}")


def check_index(family: Family, index: Mapping[str, Any], folder: Path, given: Mapping[str, Any]) -> None:
    """Refuse a folder that lacks a component, before anything is loaded; the text begins with the component.

    Args:
        index: content of its `model_index.json`.
        given: components that the caller brings.
    """
    for name, kinds in family.components.items():
        entry = index.get(name) or (None, None)
        if name in given or (entry[1] is None and name in family.optional):
            continue
        if entry[1] is None:
            raise ValueError(f"{name}: model_index.json names none; a checkpoint of the {family.name} family has one")
        if not (folder / name).is_dir():
            raise ValueError(f"{name}: no folder {name} beside model_index.json")
        if kinds and entry[1].removesuffix("Fast") not in {kind.removesuffix("Fast") for kind in kinds}:
            raise ValueError(f"{name}: {entry[1]} is not {' or '.join(kinds)}")
