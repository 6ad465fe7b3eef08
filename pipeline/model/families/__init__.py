"""Families: what the checkpoints of each kind do differently. A new family is one module here and one line below.

- `base`: the interface, `Cond` (what a guidance branch is given) and helpers for it.
- `unet`: what I2VGen-XL and PIA share; `guided`: U-Nets of both that are told the guidance scale.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from .base import Cond, Control, Defaults, Family, Generators, Parts, Request, cast_cond, stack
from .guided import check_guided, guidance_embedding, guidance_width


class _Entry(NamedTuple):
    """Where a family is, and by what a checkpoint of it is known.

    Attributes:
        module, family: a module, imported when it is needed (diffusers takes a second for each architecture), and its
            class.
        pipelines: values of `_class_name` in `model_index.json`.
        networks: classes of the network.
    """

    module: str
    family: str
    pipelines: tuple[str, ...]
    networks: tuple[str, ...]


_KNOWN = (
    _Entry("i2vgen_xl", "I2VGenXLFamily", ("I2VGenXLPipeline",), ("I2VGenXLUNet", "GuidedI2VGenXLUNet")),
    # A picture U-Net of Stable Diffusion becomes PIA's with a motion adapter.
    _Entry("pia", "PIAFamily", ("PIAPipeline", "StableDiffusionPipeline"), ("UNetMotionModel", "UNet2DConditionModel")),
    _Entry("cogvideox", "CogVideoXFamily", ("CogVideoXImageToVideoPipeline",), ("CogVideoXTransformer3DModel",)),
    _Entry(
        "hunyuanvideo15",
        "HunyuanVideo15Family",
        ("HunyuanVideo15ImageToVideoPipeline",),
        ("HunyuanVideo15Transformer3DModel",),
    ),
    _Entry(
        "ltx",
        "LTXFamily",
        ("LTXImageToVideoPipeline", "LTXPipeline", "LTXConditionPipeline"),
        ("LTXVideoTransformer3DModel",),
    ),
    _Entry("svd", "SVDFamily", ("StableVideoDiffusionPipeline",), ("UNetSpatioTemporalConditionModel",)),
    _Entry("wan", "WanFamily", ("WanImageToVideoPipeline",), ("WanTransformer3DModel",)),
)

_OWN = ("ImageAnimationPipeline",)
"""What this project wrote into `model_index.json` before it named diffusers' own classes."""

_TEXT_ALONE = "it makes clips of text alone; take a checkpoint of {}ImageToVideoPipeline"
_REASONS = {
    **{f"{name}Pipeline": _TEXT_ALONE.format(name) for name in ("Wan", "CogVideoX", "HunyuanVideo15")},
    "LTX2ImageToVideoPipeline": "it makes sound too; its licence asks companies from $10 million a year on for a paid "
    "one, and counts students as derivatives",
}


def family_of_index(index: Mapping[str, Any]) -> Family:
    """Return the family of a checkpoint by its `model_index.json`.

    Raises:
        ValueError: no family reads this class; names those that are read.
    """
    name = index.get("_class_name")
    if name in _OWN:
        network = index.get("unet") or index.get("transformer") or [None, None]
        return _family_with(network[1:], f"model_index.json: {network[1]}")
    for entry in _KNOWN:
        if name in entry.pipelines:
            return _load(entry)
    known = ", ".join(pipeline for entry in _KNOWN for pipeline in entry.pipelines)
    reason = f": {_REASONS[name]}" if name in _REASONS else ""
    raise ValueError(f"model_index.json: {name} belongs to no known family{reason}; known: {known}")


def family_of_components(components: Mapping[str, Any]) -> Family:
    """Return the family of a checkpoint by the class of its network.

    Raises:
        ValueError: no family has such a network.
    """
    name = next((one for one in ("unet", "transformer") if components.get(one) is not None), "unet")
    network = components.get(name)
    channels = getattr(getattr(network, "config", None), "in_channels", "?")
    kinds = [kind.__name__ for kind in type(network).__mro__]
    return _family_with(kinds, f"{name}: {kinds[0]} with {channels} input channels")


def _family_with(kinds: Sequence[str | None], what: str) -> Family:
    """Return the family of the first of these classes that is some family's network."""
    for kind in kinds:
        for entry in _KNOWN:
            if kind in entry.networks:
                return _load(entry)
    known = ", ".join(network for entry in _KNOWN for network in entry.networks)
    raise ValueError(f"{what} belongs to no known family; known: {known}")


@cache
def _load(entry: _Entry) -> Family:
    family: Family = getattr(importlib.import_module(f".{entry.module}", __package__), entry.family)()
    return family


def all_families() -> tuple[Family, ...]:
    """Return every family, which imports all their architectures."""
    return tuple(_load(entry) for entry in _KNOWN)


__all__ = [
    "Cond",
    "Control",
    "Defaults",
    "Family",
    "Generators",
    "Parts",
    "Request",
    "all_families",
    "cast_cond",
    "check_guided",
    "family_of_components",
    "family_of_index",
    "guidance_embedding",
    "guidance_width",
    "stack",
]
