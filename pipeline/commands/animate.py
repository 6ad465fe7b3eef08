"""The command `animate`: a picture and a prompt to a file."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..console import Counter, tell
from ..errors import StillmotionError
from ..media.formats import FORMATS
from ..model.controls import KNOWN_CONTROLS
from ..serve.request import ALL_FIELDS, AnimationRequest, Field, size_text
from ..writing import write_beside
from .options import add_model, existing, open_model, positive, size, utf8_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of `animate`."""
    parser.add_argument("--image", type=Path, required=True, help="PNG, JPEG or WebP")
    parser.add_argument("--prompt", type=utf8_text, help="what moves and how, such as 'a red circle moves right'")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .mp4, .webm, .webp or .gif")
    for one in ALL_FIELDS:
        if one.name not in {"image", "prompt", "format"}:
            parser.add_argument(f"--{one.name.replace('_', '-')}", **_option(one))
    add_model(parser)


def _option(one: Field) -> dict[str, Any]:
    """Return how argparse reads a field of a request."""
    about = one.about[0].lower() + one.about[1:]
    if one.kind == "file":
        return {"type": Path, "metavar": "FILE", "help": about}
    if one.name == "size":
        return {"type": size, "metavar": "WxH", "help": about}
    if one.kind in {"text", "choice"}:
        return {"type": utf8_text, "metavar": "TEXT" if one.kind == "text" else "X", "help": about}
    kind = (positive if (one.least or 0) >= 1 else int) if one.kind == "integer" else float
    return {"type": kind, "metavar": "N" if one.kind == "integer" else "X", "help": about}


def animate_picture(options: argparse.Namespace) -> dict[str, Any]:
    """Write the clip, and say what it was made with."""
    from ..media import video
    from ..media.images import decode

    suffix = options.out.suffix.lower().removeprefix(".")
    if problem := suffix_problem(options.out):
        options.usage_error(problem)
    picture = decode(existing(options.image))
    last = None if options.last_image is None else decode(existing(options.last_image))
    check_out(options.out, options.image)
    height, width = options.size or (None, None)
    animator = open_model(
        options.model, num_frames=options.frames, height=height, width=width, num_inference_steps=options.steps
    )
    if options.prompt is None and animator.info.takes_prompt:
        options.usage_error("--prompt: say what should move")
    own = {name: getattr(options, name) for name in ("seed", "frames", "fps", "negative_prompt", "steps")}
    own["size"] = None if options.size is None else size_text(options.size)
    controls = {name: getattr(options, name) for name in ("guidance_scale", *KNOWN_CONTROLS)}
    given = {name: value for name, value in controls.items() if value is not None}
    request = AnimationRequest(options.prompt or "", **own, controls=given)
    animation = animator.animate(picture, request, on_step=Counter("step"), last_image=last)
    if truncated := animation.prompt_length.truncated:
        tell(f"--prompt is too long: {truncated}")
    data = video.encode(animation.clip, animation.fps, suffix)
    write_beside(options.out, lambda path: path.write_bytes(data))
    tell(f"{animator.name}, seed {animation.seed}, {animation.compute_s:.1f} s")
    about = {key: value for key, value in asdict(animation).items() if key != "clip"}
    return {"out": str(options.out), "model": animator.name, "frames": len(animation.clip), **about}


def suffix_problem(path: Path) -> str | None:
    """Return what is wrong with the suffix of a file to write, or None."""
    known = path.suffix.lower().removeprefix(".") in FORMATS
    return None if known else f"--out: the suffix {path.suffix!r} is not one of .{', .'.join(FORMATS)}"


def check_out(path: Path, picture: Path) -> None:
    """Refuse, before any work, a file that cannot be written or should not be."""
    if not path.parent.is_dir():
        raise StillmotionError(f"{path.parent}: no such folder")
    if path.is_dir():
        raise StillmotionError(f"{path}: is a folder; --out names a file to write")
    if path.exists() and path.samefile(picture):
        raise StillmotionError(f"{path}: is the input picture, which would be lost; --out names another file")
    if path.exists() and not os.access(path, os.W_OK):
        raise StillmotionError(f"{path}: is write-protected; --out names another file")
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise StillmotionError(f"{path}: cannot be written ({error.strerror})") from error
