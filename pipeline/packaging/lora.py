"""Low-rank adapters (LoRA, Hu et al. 2021) that others trained, merged into a network's weights.

A file holds, for a layer of weight W, two matrices and perhaps a scalar alpha, or the whole difference::

    W <- W + scale * alpha / rank * up @ down          W <- W + scale * diff

Layouts that are read, as their authors publish them:

- LightX2V and Wan2.2-Lightning: `diffusion_model.blocks.0.self_attn.q.lora_down.weight`, `.lora_up.weight`, `.alpha`,
  and differences `.diff` of a weight, `.diff_b` of a bias, `.diff_m` of a modulation.
- peft and diffusers: `transformer.blocks.0.attn1.to_q.lora_A.weight`, `.lora_B.weight`, `.lora_B.bias`, with alpha in
  the file's metadata.
- musubi-tuner: `lora_unet_blocks_0_self_attn_q.lora_down.weight`.

Published names of Wan become diffusers' by diffusers' own converter of whole checkpoints. Its loader of adapters is not
used: it leaves out differences of norms and modulations without an error, and keeps the adapter beside the weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import ModelError, first_line
from ..machine import sha256_of
from ..serve.manifest import MergedFile
from .lora_file import LoraFile

_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.")

# Ends of names in a file, each with what it is and the parameter that it changes.
_ENDS = {
    ".lora_down.weight": ("down", "weight"),
    ".lora_up.weight": ("up", "weight"),
    ".lora_A.weight": ("down", "weight"),
    ".lora_B.weight": ("up", "weight"),
    ".lora_A.default.weight": ("down", "weight"),
    ".lora_B.default.weight": ("up", "weight"),
    ".lora_B.bias": ("diff", "bias"),
    ".alpha": ("alpha", "weight"),
    ".diff": ("diff", "weight"),
    ".diff_b": ("diff", "bias"),
    ".diff_m": ("diff", "modulation"),
}

_MUSUBI = re.compile(r"lora_unet_blocks_(\d+)_(self_attn|cross_attn|ffn)_(\w+)")


@dataclass
class _Change:
    """What a file says of one parameter: names of its tensors, and alpha where there is one."""

    down: str | None = None
    up: str | None = None
    diff: str | None = None
    alpha: str | None = None


def merge(network: nn.Module, file: LoraFile, component: str) -> MergedFile:
    """Add a file's change to the weights of a network, one weight at a time, in float32.

    Args:
        component: name of the network, for errors and the result.

    Raises:
        ModelError: the file cannot be read; it holds what is not merged, keys that match nothing in the network, shapes
            that do not fit, or numbers that are not finite. Nothing is changed unless all keys and shapes fit.
    """
    path = file.path
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path}: is no .safetensors file; others can run code when they are read, so convert it first"
        )
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as stored:
            parameters = network.state_dict(keep_vars=True)
            changes = _changes(stored.keys(), network, parameters, path, component)
            metadata = _Metadata.read(stored.metadata() or {}, path)
            shapes = {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118
            for name, change in changes.items():
                _check_shape(name, change, shapes, tuple(parameters[name].shape), path, component)
            if file.scale != 0:
                for name, change in changes.items():
                    _add(parameters[name], change, stored, file.scale, metadata.alpha_of(name), f"{path}: {name}")
    except SafetensorError as error:
        raise ModelError(f"{path}: cannot be read: {first_line(error)}; copy it again") from error
    return MergedFile(component=component, file=path.name, sha256=sha256_of(path), scale=file.scale, keys=len(changes))


@dataclass(frozen=True)
class _Metadata:
    """Alphas that peft and diffusers write into the header of a file; None where there are none."""

    alpha: float | None = None
    pattern: tuple[tuple[str, float], ...] = ()
    root: bool = False

    @classmethod
    def read(cls, header: Mapping[str, str], path: Path) -> _Metadata:
        text = header.get("lora_adapter_metadata")
        if text is None:
            return cls()
        try:
            content = json.loads(text)
            # diffusers writes the component's name before each key.
            own = {key.rpartition(".")[2]: value for key, value in content.items()}
            if own.get("use_dora"):
                raise ModelError(f"{path}: is DoRA (use_dora), which is not merged; merge it where it was trained")
            alpha, pattern = own.get("lora_alpha"), own.get("alpha_pattern") or {}
            return cls(
                None if alpha is None else float(alpha),
                tuple((str(name), float(value)) for name, value in pattern.items()),
                bool(own.get("use_rslora")),
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: its lora_adapter_metadata cannot be read ({first_line(error)})") from error

    def alpha_of(self, name: str) -> tuple[float | None, bool]:
        """Return alpha of a parameter, and whether it is divided by the root of the rank."""
        module = name.rpartition(".")[0]
        own = (value for key, value in self.pattern if re.fullmatch(rf"(.*\.)?{re.escape(key)}", module))
        return next(own, self.alpha), self.root


def _changes(
    keys: Iterable[str], network: nn.Module, parameters: Mapping[str, Any], path: Path, component: str
) -> dict[str, _Change]:
    """Return what changes, by the name of the network's parameter."""
    found: dict[str, _Change] = {}
    strange = []
    for key in keys:
        end = next((end for end in sorted(_ENDS, key=len, reverse=True) if key.endswith(end)), None)
        if end is None:
            strange.append(key)
            continue
        kind, parameter = _ENDS[end]
        change = found.setdefault(f"{_without_prefix(key.removesuffix(end))}.{parameter}", _Change())
        setattr(change, kind, key)
    if strange:
        raise ModelError(
            f"{path}: {len(strange)} keys are of a kind that is not merged (first {', '.join(sorted(strange)[:3])}); "
            f"read are {', '.join(_ENDS)}"
        )
    if not found:
        raise ModelError(f"{path}: holds no weights")
    named = _renamed(list(found), network)
    lost = sorted(name for name in found if named[name] not in parameters)
    if lost:
        held = [_any_key(found[name]) for name in lost]
        raise ModelError(
            f"{path}: {'none' if len(lost) == len(found) else f'{len(lost)}'} of its {len(found)} weights "
            f"{'match' if len(lost) == len(found) else 'match nothing'} in {component} ({type(network).__name__}); "
            f"first {', '.join(held[:3])}; it was made for another checkpoint"
        )
    return {named[name]: change for name, change in found.items()}


def _without_prefix(name: str) -> str:
    flat = _MUSUBI.fullmatch(name)
    if flat is not None:
        return f"blocks.{flat[1]}.{flat[2]}.{flat[3]}"
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _renamed(names: list[str], network: nn.Module) -> dict[str, str]:
    """Return the network's name of each published name."""
    if type(network).__name__ != "WanTransformer3DModel" or not any(
        re.search(r"(self|cross)_attn\.|^blocks\.\d+\.(modulation|ffn\.\d)|^head\.", name) for name in names
    ):
        return {name: name for name in names}
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    # It renames the keys of a dictionary and does not look at what they stand for.
    converted = convert_wan_transformer_to_diffusers({name: name for name in names})
    return {published: name for name, published in converted.items()}


def _any_key(change: _Change) -> str:
    return change.down or change.up or change.diff or change.alpha or ""


def _check_shape(
    name: str,
    change: _Change,
    shapes: Mapping[str, tuple[int, ...]],
    wanted: tuple[int, ...],
    path: Path,
    component: str,
) -> None:
    if (change.down is None) != (change.up is None) or (change.alpha is not None and change.down is None):
        raise ModelError(f"{path}: {_any_key(change)} is there without its other half; the file is not whole")
    if change.diff is not None and shapes[change.diff] != wanted:
        raise ModelError(f"{path}: {change.diff} has the shape {shapes[change.diff]}, and {component}.{name} {wanted}")
    if change.down is not None and change.up is not None:
        down, up = shapes[change.down], shapes[change.up]
        # Of a convolution the second matrix has sides of 1.
        fits = up[0] == wanted[0] and down[1:] == wanted[1:] and up[1] == down[0] and all(n == 1 for n in up[2:])
        if len(down) < 2 or len(up) < 2 or not fits:
            raise ModelError(
                f"{path}: {change.up} {up} times {change.down} {down} does not fit {component}.{name} {wanted}"
            )


def _add(
    parameter: Tensor, change: _Change, stored: Any, scale: float, alpha_and_root: tuple[float | None, bool], where: str
) -> None:
    def read(key: str) -> Tensor:
        return stored.get_tensor(key).to(parameter.device, torch.float32)  # type: ignore[no-any-return]

    total = parameter.detach().float()
    if change.down is not None and change.up is not None:
        down, up = read(change.down), read(change.up)
        alpha, root = alpha_and_root
        rank = down.shape[0]
        if change.alpha is not None:
            alpha = float(read(change.alpha))
        share = 1.0 if alpha is None else alpha / (rank**0.5 if root else rank)
        total = total + scale * share * (up.flatten(1) @ down.flatten(1)).view(parameter.shape)
    if change.diff is not None:
        total = total + scale * read(change.diff)
    merged = total.to(parameter.dtype)
    if not bool(torch.isfinite(merged).all()):
        raise ModelError(f"{where}: is NaN or infinite once it is merged in {parameter.dtype}; the file is damaged")
    with torch.no_grad():
        parameter.copy_(merged)
