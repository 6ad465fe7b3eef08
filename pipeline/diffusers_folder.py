"""What has to be known to read and write folders in diffusers format wherever they come from and go to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def has_only_variant(source: str | Path, variant: str, options: Mapping[str, Any] | None = None) -> bool:
    """Whether a component of a pipeline, in a folder or on the hub, has weights of this variant and no others.

    Args:
        options: of `from_pretrained`; what they say of the hub counts here too.
    """
    named = re.compile(rf"\.{re.escape(variant)}[.-]")  # whole files and parts of sharded ones
    components: dict[str, list[bool]] = {}
    for name in files_of(source, options or {}):
        component, _, file = name.rpartition("/")
        if "/" not in component and file.endswith((".safetensors", ".bin")) and component:
            components.setdefault(component, []).append(bool(named.search(file)))
    return any(all(is_variant) for is_variant in components.values())


def has_variant(component: Path, variant: str) -> bool:
    """Whether a component's folder has weights of this variant, perhaps beside others."""
    return any(_are_variant(component, variant))


def _are_variant(component: Path, variant: str) -> list[bool]:
    named = re.compile(rf"\.{re.escape(variant)}[.-]")  # whole files and parts of sharded ones
    files = [*component.glob("*.safetensors"), *component.glob("*.bin")]
    return [bool(named.search(file.name)) for file in files]


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


def name_portable_classes(index: Path) -> None:
    """Without torchvision transformers names its slow image processor, which others cannot load."""
    content = json.loads(index.read_text(encoding="utf-8"))
    entry = content.get("feature_extractor")
    if entry and entry[1] == "CLIPImageProcessorPil":
        content["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
