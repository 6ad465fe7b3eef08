"""The command `train`: the shipped weights, from nothing but a seed."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from ..errors import StillmotionError
from ..machine import default_device
from ..train.settings import TeacherSettings, VaeSettings
from ..writing import held
from .options import add_parameters, settings_with_parameters

PARTS = ("vae", "teacher")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of `train`."""
    parser.add_argument("part", nargs="?", choices=PARTS, help="one part alone (default: first vae, then teacher)")
    parser.add_argument("--out", type=Path, default=Path("training"), metavar="DIR", help="default: training")
    parser.add_argument(
        "--start", type=Path, metavar="DIR", help="a trained teacher that `teacher` goes on from, with its autoencoder"
    )
    parser.add_argument("--device", help="such as cpu or cuda (default: the GPU where there is one)")
    parser.add_argument("--minutes", type=float, help="stop each part after this time; a later call goes on")
    add_parameters(parser, "a training setting of the part; may be repeated")


def train_embedded(options: argparse.Namespace) -> dict[str, Any]:
    """Train the parts that are asked for."""
    if options.parameters and options.part is None:
        options.usage_error("-p: name the part that it is a setting of, vae or teacher")
    if options.start and options.part != "teacher":
        options.usage_error("--start: goes with the part teacher")
    parts = (options.part,) if options.part else PARTS
    vae, teacher = VaeSettings(), TeacherSettings()
    if options.part == "vae":
        vae = settings_with_parameters(options, vae, of="vae")
    elif options.part == "teacher":
        teacher = settings_with_parameters(options, teacher, of="teacher")
        if options.start is None:
            _must_be_there(options.out / "vae", "train the autoencoder first: python -m pipeline train vae")
        else:
            _must_be_there(options.start / "transformer", "--start takes a teacher that was trained here")
    from ..quiet import quiet_libraries

    quiet_libraries()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    with held(options.out, "training"):
        return _train(options, parts, vae, teacher)


def _train(
    options: argparse.Namespace, parts: tuple[str, ...], vae: VaeSettings, teacher: TeacherSettings
) -> dict[str, Any]:
    from ..train.teacher import train_teacher
    from ..train.vae import train_vae

    out, device = options.out, options.device or default_device()
    result: dict[str, Any] = {"out": str(out)}
    if "vae" in parts:
        result["vae"] = train_vae(vae, out, options.minutes, device=device)
    if "teacher" in parts:
        train_teacher(teacher, out, options.minutes, device=device, start=options.start)
        result["teacher"] = str(out / "teacher")
    return result


def _must_be_there(folder: Path, what_to_do: str) -> None:
    if not folder.is_dir():
        raise StillmotionError(f"{folder}: missing; {what_to_do}")
