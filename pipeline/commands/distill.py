"""The command `distill`: a student of a teacher, on one process or on a group that accelerate starts."""

from __future__ import annotations

import argparse
import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import Counter, tell
from ..writing import held, write_atomically, write_beside
from .options import add_parameters, positive, settings_with_parameters

if TYPE_CHECKING:
    from ..distill.data import Source
    from ..distill.settings import DistillSettings
    from ..distill.student import SampleGrid
    from ..distill.trainer import Distiller
    from ..model.animation import ImageAnimationPipeline

_LARGEST_GENERATED = 128
"""Side in pixels. Generated clips are drawn for small teachers; a larger one has seen the world."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of `distill`."""
    parser.add_argument("--teacher", metavar="FOLDER_OR_ID", help="default: the shipped teacher")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="for the student; the same command again goes on there"
    )
    parser.add_argument(
        "--data",
        type=lambda text: Path(text) if text else None,  # manifests give it empty
        metavar="FOLDER",
        help="pictures or videos with captions (default, and where it is empty: generated clips, for small teachers)",
    )
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="clips a batch (default: 8)")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after this time; a later call goes on")
    add_parameters(parser, "a setting of distillation; may be repeated")


def distill_model(options: argparse.Namespace) -> dict[str, Any]:
    """`distill`: a folder with the student, its losses and its settings."""
    from ..quiet import quiet_libraries

    quiet_libraries()
    from ..distill.checkpoint import DistillationError
    from ..distill.settings import DistillSettings
    from ..distill.trainer import Distiller
    from ..serve.sources import check_source, open_checkpoint

    settings = settings_with_parameters(options, DistillSettings(), of="distill")
    check_source(options.teacher or "")
    teacher = open_checkpoint(options.teacher, device="cpu")  # each process moves it to its own GPU
    source = _source(options, teacher.pipe, settings)
    try:
        distiller = Distiller(teacher.pipe, source, settings, options.out)
    except ValueError as error:
        options.usage_error(f"-p {error}")
    main = distiller.accelerator.is_main_process
    own, taught = teacher.info.steps, distiller.grid.teacher_steps
    if main and taught != own:
        tell(f"the teacher teaches with {taught} steps, and not with its {own}")
    about = {
        "teacher": teacher.name,
        "data": str(options.data) if options.data else "generated clips",
        "batch": options.batch,
        **asdict(settings),
    }
    if not main:
        options.json, options.lines = False, lambda _: []
    try:
        student = _train(distiller, options, about)
    except DistillationError as error:
        if main:
            raise
        raise SystemExit(1) from error  # the main process says it
    guidance = student.config
    result = {
        "out": str(options.out),
        "student": str(options.out / "student"),
        "updates": distiller.updates,
        "of": settings.updates,
        "loss": distiller.losses[-1],
        "steps": guidance.num_inference_steps,
        "teacher_steps": distiller.grid.teacher_steps,
        "guidance_scale": guidance.distilled_guidance_scale,
        "image_guidance_scale": guidance.distilled_image_guidance_scale,
        "guidance_range": guidance.guidance_range,
    }
    distiller.accelerator.end_training()
    distiller.close()
    return result


def _train(distiller: Distiller, options: argparse.Namespace, about: dict[str, Any]) -> ImageAnimationPipeline:
    from ..distill.checkpoint import write_losses

    main, out, counter = distiller.accelerator.is_main_process, options.out, Counter("update")

    def on_update(done: int, total: int, loss: float) -> None:
        if main:
            counter(done, total, f"loss {loss:.5f}")

    with held(out, "distillation") if main else contextlib.nullcontext():
        if main:
            write_atomically(out / "settings.json", json.dumps(about, indent=2) + "\n")
        try:
            student = distiller.train(on_update, options.minutes, _grid(distiller, out))
        finally:
            if main and distiller.losses:
                write_losses(out, distiller.losses)
        if main:
            write_beside(out / "student", student.save_pretrained)
        distiller.accelerator.wait_for_everyone()
        return student


def _grid(distiller: Distiller, out: Path) -> SampleGrid | None:
    """Draws what the student makes of examples that the run does not reach."""
    if not distiller.settings.sample_every:
        return None
    from ..distill.student import SampleGrid

    examples = distiller.source[10 * distiller.settings.updates * distiller.settings.accumulate]
    return SampleGrid(distiller.teacher, examples, out / "samples", distiller.settings.seed)


def _source(options: argparse.Namespace, teacher: ImageAnimationPipeline, settings: DistillSettings) -> Source:
    height, width = teacher.default_size
    frames = teacher.config.num_frames
    if options.data is not None:
        from ..distill.folders import open_folder

        data = options.data.resolve()  # a run may go on from another folder
        # Clips are told to have the teacher's rate; pictures alone are taken from a video of any.
        fps = teacher.config.fps if settings.trajectory == "forward" else None
        size = {"frames": frames, "height": height, "width": width, "fps": fps}
        return open_folder(
            data, **size, batch=options.batch, seed=settings.seed, clips_per_video=settings.clips_per_video
        )
    if height != width or height > _LARGEST_GENERATED:
        options.usage_error(
            f"--data: is needed for a teacher of {width}x{height} pixels: a folder of pictures or videos with "
            f"captions; generated clips are for square ones of at most {_LARGEST_GENERATED}"
        )
    from ..distill.data import GeneratedSource

    return GeneratedSource(height, frames, options.batch, settings.seed)


def lines(result: dict[str, Any]) -> list[str]:
    """Return what `distill` prints for people."""
    found = [f"student {result['student']}"]
    if result["updates"] < result["of"]:
        found.append(f"{result['updates']} of {result['of']} updates; the same command goes on")
    return found
