"""The command `package`: a checkpoint to a model in the store."""

from __future__ import annotations

import argparse
import re
from typing import Any

from ..errors import StillmotionError
from .options import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of `package`."""
    parser.add_argument(
        "--runtime",
        choices=("eager", "torchscript", "compile", "aot", "auto"),
        default="eager",
        help="what a server runs the network on; aot compiles it now, which takes minutes; auto is the faster "
        "of eager and torchscript, by measurement (default: eager)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        help="of network and encoders (default: float32, or that of the files on a GPU)",
    )
    parser.add_argument("--size", type=_size, metavar="WxH", help="of a clip, in pixels (default: the checkpoint's)")
    parser.add_argument("--frames", type=positive, metavar="N", help="of a clip (default: the checkpoint's)")
    parser.add_argument("--fps", type=positive, metavar="N", help="of a clip (default: the checkpoint's)")
    parser.add_argument("--steps", type=positive, metavar="N", help="of the solver (default: the checkpoint's)")
    parser.add_argument("--guidance-scale", type=float, metavar="X", help="default: the checkpoint's")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a width and a height such as 832x480")
    return int(found[2]), int(found[1])


def package_checkpoint(options: argparse.Namespace) -> dict[str, Any]:
    """Put a checkpoint into the store, with the defaults that the command names.

    Raises:
        StillmotionError: it cannot be read, or cannot make what is asked for.
    """
    from ..serve.sources import check_source, open_checkpoint

    check_source(options.checkpoint)
    from ..quiet import quiet_libraries

    quiet_libraries()
    from ..packaging.package import package

    height, width = options.size or (None, None)
    try:
        source = open_checkpoint(
            options.checkpoint,
            stored=True if options.precision else None,
            height=height,
            width=width,
            num_frames=options.frames,
            fps=options.fps,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance_scale,
        )
    except ValueError as error:
        raise StillmotionError(str(error)) from error
    precision = options.precision or source.info.dtype
    packaged = package(source, metrics={}, runtime=options.runtime, precision=precision)
    return {
        "tag": packaged.tag,
        "path": str(packaged.path),
        "max_difference": packaged.max_difference,
        "runtime": packaged.animator.runtime,
        "precision": packaged.info.precision,
        "steps": packaged.info.steps,
        "passes": packaged.info.passes,
    }
