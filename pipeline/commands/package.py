"""The command `package`: a checkpoint to a model in the store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..console import tell
from ..errors import StillmotionError
from ..packaging.lora_file import LoraFile
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
    parser.add_argument(
        "--optimise",
        action="append",
        default=[],
        metavar="NAME",
        help="a further change, may be repeated: float8-storage, offload, float8, float8-weights, compile-blocks, "
        "tiling, attention:BACKEND",
    )
    parser.add_argument("--size", type=size, metavar="WxH", help="of a clip, in pixels (default: the checkpoint's)")
    parser.add_argument("--frames", type=positive, metavar="N", help="of a clip (default: the checkpoint's)")
    parser.add_argument("--fps", type=positive, metavar="N", help="of a clip (default: the checkpoint's)")
    parser.add_argument("--steps", type=positive, metavar="N", help="of the solver (default: the checkpoint's)")
    parser.add_argument(
        "--guidance-scale",
        type=float,
        metavar="X",
        help="default: the checkpoint's; 1 with --lora or --transformer makes a student of one pass a step",
    )
    student = parser.add_argument_group("a student that others trained")
    student.add_argument(
        "--lora",
        type=lora_file,
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="merge this adapter (.safetensors) into the network; may be repeated (scale: 1)",
    )
    student.add_argument(
        "--lora-2",
        type=lora_file,
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="the same for the expert of low noise levels, where a checkpoint has two",
    )
    student.add_argument(
        "--transformer", type=Path, metavar="FOLDER", help="a whole distilled network in place of the checkpoint's"
    )
    student.add_argument(
        "--transformer-2", type=Path, metavar="FOLDER", help="the same for the expert of low noise levels"
    )
    student.add_argument(
        "--shift", type=shift, metavar="X", help="of the noise levels of flow matching (default: the checkpoint's)"
    )
    student.add_argument(
        "--solver",
        choices=("euler",),
        help="euler: first-order steps, as few-step students of Wan are sampled (default: the checkpoint's)",
    )
    student.add_argument(
        "--timesteps",
        type=timesteps,
        default=[],
        metavar="T,T,...",
        help="where a student of distribution matching noises its prediction again, as 1000,757,522 of FastWan",
    )


def timesteps(text: str) -> list[float]:
    """Return the numbers of `T,T,...`."""
    return [float(part) for part in text.split(",")]


def lora_file(text: str) -> LoraFile:
    """Return the file and the scale of `FILE[:SCALE]`."""
    try:
        return LoraFile.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def shift(text: str) -> float:
    """Return a shift of noise levels."""
    value = float(text)
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is outside 0 (not allowed) to 100")
    return value


def package_checkpoint(options: argparse.Namespace) -> dict[str, Any]:
    """Put a checkpoint into the store, with the defaults that the command names."""
    from ..serve.sources import check_source

    check_source(options.checkpoint)
    from ..quiet import quiet_libraries

    quiet_libraries()
    from ..packaging.distilled import Distilled, open_distilled
    from ..packaging.package import package

    height, width = options.size or (None, None)
    distilled = Distilled(
        loras=options.lora,
        loras_2=options.lora_2,
        transformer=options.transformer,
        transformer_2=options.transformer_2,
        shift=options.shift,
        solver=options.solver,
        timesteps=options.timesteps,
    )
    try:
        source = open_distilled(
            options.checkpoint,
            distilled,
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
    try:
        packaged = package(source, {}, options.runtime, precision, options.optimise)
    except ValueError as error:
        raise StillmotionError(str(error)) from error
    if packaged.animator.fallback is not None:
        tell(f"on this machine: {packaged.animator.fallback}")
    return {
        "tag": packaged.tag,
        "path": str(packaged.path),
        "max_difference": packaged.max_difference,
        "runtime": packaged.animator.runtime,
        "left_out": packaged.animator.fallback,
        "precision": packaged.info.precision,
        "steps": packaged.info.steps,
        "passes": packaged.info.passes,
        "shift": packaged.info.shift,
        "merged": [one.model_dump() for one in packaged.info.merged],
    }
