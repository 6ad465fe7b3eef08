"""The command `train`: the shipped weights, from nothing but a seed."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from ..errors import StillmotionError
from ..machine import default_device
from ..train.settings import TeacherSettings, VaeSettings, VideoVaeSettings, WanTeacherSettings
from ..writing import held
from .options import add_parameters, settings_with_parameters

PARTS = ("vae", "teacher", "refine")
WAN_PARTS = ("wan-vae", "wan-teacher")
"""Those of the teacher in Wan's classes; they are trained by name alone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of `train`."""
    parser.add_argument(
        "part",
        nargs="?",
        choices=(*PARTS, *WAN_PARTS),
        help="one part alone (default: vae, teacher and refine, in order)",
    )
    parser.add_argument("--out", type=Path, default=Path("training"), metavar="DIR", help="default: training")
    parser.add_argument("--start", type=Path, metavar="DIR", help="what `refine` starts from; default: OUT/teacher")
    parser.add_argument("--device", help="such as cpu or cuda (default: the GPU where there is one)")
    parser.add_argument("--minutes", type=float, help="stop each part after this time; a later call goes on")
    add_parameters(parser, "a training setting; may be repeated")


def train_embedded(options: argparse.Namespace) -> dict[str, Any]:
    """Train the parts that are asked for."""
    if options.part in WAN_PARTS:
        return _train_wan(options)
    is_vae = options.part == "vae"
    vae = settings_with_parameters(options, VaeSettings(), of="vae" if is_vae else None)
    teacher = settings_with_parameters(options, TeacherSettings(), of=None if is_vae else options.part)
    _say_how_it_goes()
    with held(options.out, "training"):
        return _train(options, vae, teacher)


def _say_how_it_goes() -> None:
    from ..quiet import quiet_libraries

    quiet_libraries()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")


def _train_wan(options: argparse.Namespace) -> dict[str, Any]:
    """Train one part of the teacher in Wan's classes."""
    out, device = options.out, options.device or default_device()
    if options.part == "wan-vae":
        vae = settings_with_parameters(options, VideoVaeSettings(), of="wan-vae")
        _say_how_it_goes()
        from ..train.video_vae import train_video_vae

        with held(out, "training"):
            return {"out": str(out), "wan_vae": train_video_vae(vae, out, options.minutes, device=device)}
    teacher = settings_with_parameters(options, WanTeacherSettings(), of="wan-teacher")
    _must_be_there(out / "wan-vae", "train its autoencoder first: python -m pipeline train wan-vae")
    _say_how_it_goes()
    from ..train.wan_teacher import train_wan_teacher

    with held(out, "training"):
        train_wan_teacher(teacher, out, options.minutes, device=device)
    return {"out": str(out), "teacher": str(out / "wan-teacher")}


def _train(options: argparse.Namespace, vae: VaeSettings, teacher: TeacherSettings) -> dict[str, Any]:
    from ..train.teacher import train_teacher
    from ..train.vae import train_vae

    out, parts = options.out, (options.part,) if options.part else PARTS
    device = options.device or default_device()
    result: dict[str, Any] = {"out": str(out)}
    if "vae" in parts:
        result["vae_psnr_db"] = train_vae(vae, out, options.minutes, device=device)
    if "teacher" in parts:
        _must_be_there(out / "vae", "train the autoencoder first: python -m pipeline train vae")
        train_teacher(teacher, out, options.minutes, device=device)
        result["teacher"] = str(out / "teacher")
    if "refine" in parts:
        start = options.start or out / "teacher"
        _must_be_there(start / "unet", "train the teacher first: python -m pipeline train teacher")
        train_teacher(teacher, out, options.minutes, start=start, device=device)
        result["teacher"] = str(out / "refined")
    return result


def _must_be_there(folder: Path, what_to_do: str) -> None:
    if not folder.is_dir():
        raise StillmotionError(f"{folder}: missing; {what_to_do}")
