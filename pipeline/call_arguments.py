"""Arguments of one call of the pipeline: brought into one form, and checked; errors begin with the argument's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL.Image import Image
from torch import Tensor


def broadcast(
    image: Image | Sequence[Image], prompt: str | Sequence[str], negative: str | Sequence[str]
) -> tuple[list[Image], list[str], list[str]]:
    """Pictures, texts and negative texts, as many of each.

    Raises:
        ValueError: their numbers differ, or a prompt is no text.
    """
    images = list(image) if isinstance(image, Sequence) else [image]
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if len(images) != len(prompts):
        raise ValueError(f"prompt: {len(prompts)} prompts for {len(images)} pictures")
    if not all(isinstance(text, str) for text in prompts):
        raise ValueError("prompt: not text")
    negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
    if len(negatives) != len(prompts):
        raise ValueError(f"negative_prompt: {len(negatives)} texts for {len(prompts)} prompts")
    return images, prompts, negatives


def check_size(height: int, width: int, factor: int) -> None:
    """Pixels have to be multiples of the autoencoder's factor, at least two of them.

    Raises:
        ValueError: they are not.
    """
    for name, value in (("height", height), ("width", width)):
        if value % factor or value < 2 * factor:
            raise ValueError(f"{name}: {value} is not a multiple of {factor} of at least {2 * factor}")


def check_counts(**counts: int) -> None:
    """Numbers of frames, steps and frames per second, by the argument's name, have to be at least 1.

    Raises:
        ValueError: one is below.
    """
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: {value} is below 1")


def check_clip_skip(clip_skip: int | None, layers: int) -> None:
    """No more layers of the text encoder can be left out than it has.

    Raises:
        ValueError: it is outside 0 to `layers`.
    """
    if clip_skip is not None and not 0 <= clip_skip <= layers:
        raise ValueError(f"clip_skip: {clip_skip} is outside 0 to {layers}, the layers of the text encoder")


def starting_noise(
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None,
    given: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Noise of unit variance, `shape`, float32: drawn, or what was given.

    Raises:
        ValueError: `given` has another shape, or the number of generators is not that of clips.
    """
    if given is not None:
        if tuple(given.shape) != shape:
            raise ValueError(f"latents: shape {tuple(given.shape)} is not {shape}")
        return given.to(device=device, dtype=torch.float32)
    if isinstance(generator, list) and len(generator) != shape[0]:
        raise ValueError(f"generator: {len(generator)} generators for {shape[0]} clips")
    return cast(Tensor, randn_tensor(shape, generator=generator, device=device, dtype=torch.float32))
