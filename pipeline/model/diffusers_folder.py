"""What has to be known to read and write folders in diffusers format wherever they come from and go to."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any


def has_only_variant(source: str | Path, variant: str, options: Mapping[str, Any] | None = None) -> bool:
    """Return whether a component of a pipeline, in a folder or on the hub, has weights of this variant and no others.

    Args:
        options: of `from_pretrained`; what they say of the hub counts here too.
    """
    components: dict[str, list[bool]] = {}
    for name in files_of(source, options or {}):
        component, _, file = name.rpartition("/")
        if "/" not in component and file.endswith(_WEIGHTS) and component:
            components.setdefault(component, []).append(_is_variant(file, variant))
    return any(all(is_variant) for is_variant in components.values())


def has_variant(component: Path, variant: str) -> bool:
    """Return whether a component's folder has weights of this variant, perhaps beside others."""
    return any(_is_variant(file.name, variant) for file in component.iterdir() if file.suffix in _WEIGHTS)


_WEIGHTS = (".safetensors", ".bin")


def _is_variant(file: str, variant: str) -> bool:
    return f".{variant}." in file or f".{variant}-" in file  # whole files and parts of sharded ones


def files_of(source: str | Path, options: Mapping[str, Any]) -> list[str]:
    """Files of a folder, or of a hub id: those that the hub names, or that lie in its cache where it is not reached."""
    folder = Path(source)
    if folder.is_dir():
        return [path.relative_to(folder).as_posix() for path in folder.glob("*/*")]
    from huggingface_hub import HfApi, snapshot_download

    known = {name: options[name] for name in ("revision", "token") if name in options}
    try:
        return list(HfApi().list_repo_files(str(source), **known))
    except Exception:  # noqa: BLE001, S110  # no network, no such repository, not an id: each has kinds of its own
        pass
    try:
        cached = snapshot_download(str(source), local_files_only=True, cache_dir=options.get("cache_dir"), **known)
    except Exception:  # noqa: BLE001  # loading says what is wrong
        return []
    return [path.relative_to(cached).as_posix() for path in Path(cached).glob("*/*")]


OWN_SETTINGS = (
    "num_inference_steps",
    "guidance_scale",
    "image_guidance_scale",
    "num_frames",
    "fps",
    "height",
    "width",
    "distilled_guidance_scale",
    "distilled_image_guidance_scale",
    "guidance_range",
)
"""What a checkpoint of this project says beside what diffusers' own class of its family knows."""

_OWN_KEY = "_stillmotion"
"""Where `model_index.json` has them: diffusers passes over names that begin with an underscore, without a warning."""


def read_index(reader: Any, source: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `model_index.json` of a folder or hub id, and of it what diffusers does not know.

    Args:
        reader: class of the pipeline, for `load_config`.
        options: of `from_pretrained`; what they say of the hub counts here too.
    """
    known = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")
    index = dict(reader.load_config(source, **{name: options[name] for name in known if name in options}))
    own = index.get(_OWN_KEY) or {}
    return index, dict(own)


def save_changed(pipe: Any, folder: Path, source: str | Path, changed: Collection[str]) -> None:
    """Save a pipeline of which most components are those of a folder: their weights are linked, and not written again.

    Args:
        source: folder that the other components were loaded from; of anything else, such as a hub id, all is written.
        changed: names of the components to write; those of another class than the source's are written too.
    """
    source = Path(source)
    if not source.is_dir():
        pipe.save_pretrained(folder, safe_serialization=True)
        return
    shutil.rmtree(folder, ignore_errors=True)
    stored = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    for name, component in pipe.components.items():
        if component is None:
            continue
        same = name not in changed and (stored.get(name) or [None, None])[1] == type(component).__name__
        if same and (source / name).is_dir():
            shutil.copytree(source / name, folder / name, copy_function=_link_weights)
        else:
            component.save_pretrained(folder / name)
    pipe.save_index(folder)


def _link_weights(source: str, target: str) -> None:
    linked = False
    if source.endswith(_WEIGHTS):
        with contextlib.suppress(OSError):  # another file system, or one without links
            Path(target).hardlink_to(Path(source).resolve())
            linked = True
    if not linked:
        shutil.copy2(source, target)


def finish_index(index: Path, pipeline_class: str, own: Sequence[str]) -> None:
    """Rewrite a saved `model_index.json`, so that diffusers' own class of the family reads the folder.

    Args:
        own: names of what it does not know.
    """
    content = json.loads(index.read_text(encoding="utf-8"))
    content["_class_name"] = pipeline_class
    content[_OWN_KEY] = {name: content.pop(name) for name in own if name in content}
    # Without torchvision transformers names its slow image processor, which others cannot load.
    for name in ("feature_extractor", "image_processor"):
        entry = content.get(name)
        if entry and str(entry[1]).endswith("ImageProcessorPil"):
            content[name] = ["transformers", entry[1].removesuffix("Pil")]
    index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
