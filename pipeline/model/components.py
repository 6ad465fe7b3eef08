"""The networks of a checkpoint: loaded one by one, and refused where their weights do not fit.

The libraries fill in random numbers for weights that a file does not hold, and say so in a warning at most. A clip that
was made with them looks like a clip.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ModelMixin
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ModelError, NotFiniteError, first_line
from ..machine import dtype_name
from .diffusers_folder import has_variant

# With these diffusers spreads the components over devices, or changes their weights while it loads them.
_LOADED_BY_DIFFUSERS = frozenset({"device_map", "quantization_config", "use_flashpack", "custom_pipeline"})


STORED = "stored"
"""Instead of a precision: each component in that of its file."""

_HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}
_LOOKED_AT = 64
"""Weights of a file that are looked at for their precision."""

_MOVED = {
    "pipeline.families.guided": "pipeline.model.families.guided",
    "pipeline.optimise.solver": "pipeline.model.solver",
}
"""Modules of this project that checkpoints name as they were called when they were saved."""

_OWN = {*_MOVED.values(), "pipeline.model.flow_solver", "pipeline.model.grid_solver", "pipeline.model.renoising"}
"""Modules of this project that a checkpoint may take a component's class from."""


def with_moved_modules(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `model_index.json` with this project's modules as they are called now."""
    return {
        name: [_MOVED.get(value[0], value[0]), *value[1:]] if isinstance(value, list) and value else value
        for name, value in index.items()
    }


def load_components(
    pipeline: Any, folder: Path, arguments: Mapping[str, Any], device: str | None = None
) -> dict[str, Any]:
    """Load the networks of a pipeline's folder, each checked, and components of this project's own classes.

    Args:
        pipeline: its class, with its family.
        arguments: of `DiffusionPipeline.from_pretrained`. What it gives as an object is not loaded; with
            `device_map` or a quantisation no network is, since diffusers has to do that itself.
        device: that weights are read to; None: the processor's memory.

    Returns:
        By name. What is no network of diffusers or transformers is left out.

    Raises:
        ModelError: a file cannot be read, or weights are missing, unexpected, of another shape or not finite; names the
            component and the first key.
    """
    by_diffusers = any(arguments.get(name) for name in _LOADED_BY_DIFFUSERS)
    index = with_moved_modules(pipeline.load_config(folder))
    found: dict[str, Any] = {}
    for name in sorted(pipeline.family.components.keys() & index.keys() - arguments.keys()):
        entry = index[name]
        if not (isinstance(entry, list) and len(entry) == 2 and entry[0] and (folder / name).is_dir()):
            continue
        module, own = entry[0], entry[0] in _OWN
        # Only modules that are imported already, or the project's own: a folder does not decide which code is run.
        kind = getattr(importlib.import_module(module) if own else sys.modules.get(module), str(entry[1]), None)
        if isinstance(kind, type) and issubclass(kind, (ModelMixin, PreTrainedModel)):
            if not by_diffusers:
                found[name] = _load_model(name, kind, folder / name, arguments, device)
        elif own and kind is not None:
            found[name] = kind.from_pretrained(folder / name)
    return found


def load_network(name: str, folder: Path, kinds: Sequence[str], dtype: Any, device: str | None = None) -> nn.Module:
    """Load a network of diffusers by itself, checked.

    Args:
        name: of the component that it stands for, for errors.
        folder: with its `config.json` and weights.
        kinds: names of the classes that it may be of.
        dtype: precision, or "stored" for that of the file.
        device: that weights are read to; None: the processor's memory.

    Raises:
        ModelError: it is of another class, or as `load_components`.
    """
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder}: no config.json with a _class_name that can be read; give a network's folder in diffusers format"
        ) from error
    if kind not in kinds:
        raise ModelError(f"{folder}: holds a {kind}, and {name} is a {' or '.join(kinds)}")
    return _load_model(name, getattr(sys.modules["diffusers"], kind), folder, {"dtype": dtype}, device)


def _load_model(name: str, kind: Any, folder: Path, arguments: Mapping[str, Any], device: str | None) -> nn.Module:
    dtype = arguments.get("dtype", arguments.get("torch_dtype"))
    if isinstance(dtype, Mapping):
        dtype = dtype.get(name, dtype.get("default", torch.float32))
    elif dtype == STORED:
        dtype = _stored_dtype(folder)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": arguments.get("use_safetensors")}
    if (variant := arguments.get("variant")) and has_variant(folder, variant):
        options["variant"] = variant
    if device not in {None, "cpu"}:
        options["device_map"] = {"": device}
    if issubclass(kind, ModelMixin):
        options["disable_mmap"] = arguments.get("disable_mmap", False)
    # Without `ignore_mismatched_sizes` the first wrong shape ends in a report of many lines.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, report = kind.from_pretrained(str(folder), **options)
    except Exception as error:  # of libraries, whose kinds are many, and which seldom say what they were reading
        raise ModelError(f"{name}: cannot be loaded: {first_line(error)}; copy the part again") from error
    if misfits := _misfits(report):
        raise ModelError(f"{name}: its weights do not fit its config.json: {'; '.join(misfits)}; save the part again")
    check_finite(name, model)
    return cast(nn.Module, model)


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the precision of most of a component's weights in its first file; float32 where that is none of them."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            # Norms are often kept wider than the rest.
            kinds = Counter(file.get_slice(key).get_dtype() for key in list(file.keys())[:_LOOKED_AT])
        return _HALVES.get(kinds.most_common(1)[0][0], torch.float32) if kinds else torch.float32
    return torch.float32


def _misfits(report: Mapping[str, Any]) -> list[str]:
    found = []
    if missing := sorted(report["missing_keys"]):
        found.append(f"{len(missing)} missing (first {missing[0]})")
    if unexpected := sorted(report["unexpected_keys"]):
        found.append(f"{len(unexpected)} unexpected (first {unexpected[0]})")
    if other := sorted(report["mismatched_keys"]):
        key, stored, wanted = other[0]
        found.append(f"{len(other)} of another shape (first {key}: {tuple(stored)} instead of {tuple(wanted)})")
    return found


def check_finite(name: str, model: nn.Module) -> None:
    """Refuse weights that are not all numbers.

    Raises:
        ModelError: some are NaN or infinite; names the component and the first key.
    """
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{name}: {key} holds NaN or infinity; training or a change of precision broke it, so take an earlier "
                "checkpoint or a wider precision"
            )


def check_output(name: str, output: Tensor) -> None:
    """Refuse what a component computed where that is not all numbers.

    Raises:
        NotFiniteError: some are NaN or infinite.
    """
    if not bool(torch.isfinite(output).all()):
        raise NotFiniteError(
            f"{name}: computed NaN or infinity in {dtype_name(output.dtype)}, so that there is no clip to show; "
            "package the model again, in a wider precision or from an earlier checkpoint"
        )
