"""The command `package`: a checkpoint to a model in the store."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import StillmotionError
from .options import positive, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of `package`."""
    parser.add_argument(
        "--checkpoint", "--model", required=True, metavar="FOLDER_OR_ID", dest="checkpoint", help="in diffusers format"
    )
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
    parser.add_argument("--size", type=size, metavar="WxH", help="of a clip, in pixels (default: the checkpoint's)")
    parser.add_argument("--frames", type=positive, metavar="N", help="of a clip (default: the checkpoint's)")
    parser.add_argument("--fps", type=positive, metavar="N", help="of a clip (default: the checkpoint's)")
    parser.add_argument("--steps", type=positive, metavar="N", help="of the solver (default: the checkpoint's)")
    parser.add_argument("--guidance-scale", type=float, metavar="X", help="default: the checkpoint's")


def package_checkpoint(options: argparse.Namespace) -> dict[str, Any]:
    """Put a checkpoint into the store, with the defaults that the command names."""
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
