"""Arguments of one call of the pipeline: brought into one form, and checked; errors begin with the argument's name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL.Image import Image
from torch import Tensor

Texts = list[str] | Tensor
"""Texts, or what the text encoder makes of them, `(batch, tokens, width)`."""


def broadcast(
    image: Image | Sequence[Image],
    prompt: str | Sequence[str] | None,
    negative: str | Sequence[str] | None,
    prompt_embeds: Tensor | None,
    negative_embeds: Tensor | None,
    width: int,
) -> tuple[list[Image], Texts, Texts]:
    """Pictures, prompts and negative prompts, as many of each.

    Args:
        prompt_embeds, negative_embeds: in place of the texts, `(batch, tokens, width)`.
        width: of the text encoder.

    Raises:
        ValueError: their numbers differ, a prompt is no text, or it is given in two forms or in none.
    """
    images = list(image) if isinstance(image, Sequence) else [image]
    full = _texts("prompt", prompt, prompt_embeds, width)
    if full is None:
        raise ValueError("prompt: give it, or prompt_embeds")
    if len(images) != len(full):
        raise ValueError(f"prompt: {len(full)} prompts for {len(images)} pictures")
    other = _texts("negative_prompt", negative, negative_embeds, width)
    if other is None or isinstance(negative, str):
        other = [negative if isinstance(negative, str) else ""] * len(images)
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
    """Each value of a list, or row of a tensor, several times, one after the other."""
    if isinstance(values, Tensor):
        return values.repeat_interleave(times, dim=0)
    return [value for value in values for _ in range(times)]


_PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


def check_scheduler(scheduler: Any) -> None:
    """Only schedulers that take noise away level by level fit these models.

    Raises:
        ValueError: it is of flow matching, or its step wants more than prediction, timestep and sample.
    """
    name = type(scheduler).__name__
    needed = ("set_timesteps", "scale_model_input", "init_noise_sigma", "step")
    kind = scheduler.config.get("prediction_type") or "epsilon"
    flows = scheduler.config.get("use_flow_sigmas") or kind not in _PREDICTION_TYPES
    if flows or not all(hasattr(scheduler, one) for one in needed):
        raise ValueError(
            f"scheduler: {name} is of another kind (such as flow matching); these models take schedulers of noise "
            f"levels that predict one of {', '.join(_PREDICTION_TYPES)}"
        )
    wanted = [
        parameter.name
        for parameter in inspect.signature(scheduler.step).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if len(wanted) > 3:
        raise ValueError(f"scheduler: {name} wants {wanted[3]} at each step, which this pipeline does not have")


def check_callback_tensors(names: Sequence[str], known: Sequence[str]) -> None:
    """A callback can be given the tensors that there are.

    Raises:
        ValueError: one is not among them.
    """
    for name in names:
        if name not in known:
            raise ValueError(f"callback_on_step_end_tensor_inputs: {name!r} is not one of {', '.join(known)}")


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


def check_generators(generator: torch.Generator | list[torch.Generator] | None, clips: int) -> None:
    """One generator draws for all clips, or each clip has its own.

    Raises:
        ValueError: their number is not that of the clips.
    """
    if isinstance(generator, list) and len(generator) != clips:
        raise ValueError(f"generator: {len(generator)} generators for {clips} clips")


def starting_noise(
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None,
    given: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Noise of unit variance, `shape`, float32: drawn, or what was given.

    Raises:
        ValueError: `given` has another shape.
    """
    if given is not None:
        if tuple(given.shape) != shape:
            raise ValueError(f"latents: shape {tuple(given.shape)} is not {shape}")
        return given.to(device=device, dtype=torch.float32)
    return cast(Tensor, randn_tensor(shape, generator=generator, device=device, dtype=torch.float32))
