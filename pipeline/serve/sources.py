"""Where models come from: the checkpoint that the project ships, folders, the store, the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import tell
from ..errors import ModelError

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline
    from .engine import Animator

EMBEDDED_TEACHER = Path(__file__).parent.parent / "embedded" / "teacher"
"""The small teacher that the project trains itself."""

EMBEDDED_STUDENT = Path(__file__).parent.parent / "embedded" / "student"
"""A student of it, packaged: what a server serves where the store has no model."""


def embedded_teacher() -> Path:
    """Return folder of the shipped teacher.

    Raises:
        ModelError: this checkout has no weights.
    """
    if not (EMBEDDED_TEACHER / "model_index.json").is_file():
        raise ModelError(
            f"{EMBEDDED_TEACHER}: no weights there; name a checkpoint, or train one with `python -m pipeline train`"
        )
    return EMBEDDED_TEACHER


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(source: str) -> bool:
    """Whether this is an owner and a name; tags of the store have no slash. The hub has names without an owner too."""
    return _HUB_ID.fullmatch(source) is not None


def check_source(source: str) -> None:
    """Refuse a checkpoint that is plainly not there, without loading anything.

    Raises:
        ModelError: a path without a pipeline; of a hub id only loading can tell.
    """
    if not source:
        embedded_teacher()
        return
    folder = Path(source)
    # A hub id is one name, or an owner and a name.
    is_path = folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    if is_path and not (folder / "model_index.json").is_file():
        raise ModelError(f"{source}: no model_index.json there; give a folder in diffusers format or a hub id")


def open_checkpoint(
    source: str | Path | None,
    device: str | None = None,
    *,
    stored: bool | None = None,
    components: Mapping[str, Any] | None = None,
    change: Callable[[ImageAnimationPipeline], None] | None = None,
    **defaults: Any,
) -> Animator:
    """Return an animator around a checkpoint as published or trained, not packaged.

    Args:
        source: folder in diffusers format or hub id; None takes the shipped teacher.
        stored: whether weights are kept in the precision of their files; None: on a GPU they are, since large
            checkpoints would not fit it twice as wide. In float32 else.
        components: networks to use in place of the checkpoint's, by name.
        change: called with the pipeline once its defaults are set, before it is described.
        defaults: of a call, where it is not to be the checkpoint's: num_frames, height, width, num_inference_steps,
            guidance_scale or fps.

    Raises:
        ModelError: with what to do, on one line.
        ValueError: a default is out of what the checkpoint can make.
    """
    from ..machine import default_device
    from ..model.call_arguments import check_counts, check_shape
    from .engine import Animator, load_pipeline
    from .store import describe

    source = source or embedded_teacher()
    device = device or default_device()
    stored = device != "cpu" if stored is None else stored
    pipe = load_pipeline(source, device, **({"dtype": "stored"} if stored else {}), **(components or {}))
    pipe.set_progress_bar_config(disable=True)
    name = name_of(source)
    if pipe.family.licence:
        tell(f"{name}: {pipe.family.licence}")
    if given := {name: value for name, value in defaults.items() if value is not None}:
        most = max(pipe.config.num_frames, pipe.family.defaults.frames)
        if not 1 <= given.get("num_frames", 1) <= most:
            raise ValueError(f"num_frames: {given['num_frames']} is outside 1 to {most}, which {name} was made for")
        pipe.register_to_config(**given)
        check_counts(num_frames=pipe.config.num_frames, num_inference_steps=pipe.config.num_inference_steps)
        check_shape(pipe.family, pipe.parts, pipe.config.num_frames, *pipe.default_size)
    if change is not None:
        change(pipe)
    return Animator(pipe, describe(pipe, name, {}), name)


def open_model(tag_or_folder: str | None, device: str | None = None, **defaults: Any) -> Animator:
    """Return an animator around a packaged model or a checkpoint.

    Args:
        tag_or_folder: a tag in the store, a folder of a packaged model or of a checkpoint, or a hub id
            `owner/name`. None takes the newest model of the store, or the shipped teacher where the
            store has none.
        defaults: as `open_checkpoint` has them; what is packaged keeps its own.

    Raises:
        ModelError: missing, damaged, or of an unknown family.
    """
    from .engine import Animator
    from .manifest import INFO_FILE
    from .store import MODEL_NAME, resolve

    if not tag_or_folder:
        try:
            tag_or_folder = f"{MODEL_NAME}:latest"
            resolve(tag_or_folder)
        except ModelError:
            return open_checkpoint(None, device, **defaults)
    folder = Path(tag_or_folder)
    if (folder / "model_index.json").is_file() and not (folder / INFO_FILE).is_file():
        return open_checkpoint(folder, device, **defaults)
    if not folder.exists() and is_hub_id(tag_or_folder):
        return open_checkpoint(tag_or_folder, device, **defaults)
    name, folder = resolve(tag_or_folder)
    return Animator.load(folder, name=name, device=device)


def name_of(source: str | Path) -> str:
    """Return what to call a checkpoint: "embedded teacher", a folder's name, or the hub id."""
    folder = Path(source)
    if folder.is_dir():
        folder = folder.resolve()
        return "embedded teacher" if folder == EMBEDDED_TEACHER.resolve() else folder.name
    return str(source)
