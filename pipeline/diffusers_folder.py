"""What has to be known to read and write folders in diffusers format wherever they come from and go to."""

from __future__ import annotations

import json
import re
from pathlib import Path


def needs_variant(folder: Path, variant: str) -> bool:
    """Whether a component of a pipeline folder has weights of this variant and no others."""
    return any(all(found) for component in folder.iterdir() if (found := _are_variant(component, variant)))


def has_variant(component: Path, variant: str) -> bool:
    """Whether a component's folder has weights of this variant, perhaps beside others."""
    return any(_are_variant(component, variant))


def _are_variant(component: Path, variant: str) -> list[bool]:
    named = re.compile(rf"\.{re.escape(variant)}[.-]")  # whole files and parts of sharded ones
    files = [*component.glob("*.safetensors"), *component.glob("*.bin")]
    return [bool(named.search(file.name)) for file in files]


def name_portable_classes(index: Path) -> None:
    """Without torchvision transformers names its slow image processor, which others cannot load."""
    content = json.loads(index.read_text(encoding="utf-8"))
    entry = content.get("feature_extractor")
    if entry and entry[1] == "CLIPImageProcessorPil":
        content["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
