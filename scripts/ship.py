# ruff: noqa: INP001  # a script, no package
"""Puts a trained teacher, or the student of a run, into the repository: pipeline/embedded/teacher and /student.

    python -m pipeline train
    python scripts/ship.py teacher training/teacher
    python -m pipeline run --preset student
    python scripts/ship.py student runs/latest
    python scripts/ship.py picture

The last draws the README's picture: what the shipped student makes of the samples and of two photographs.

Weights are kept in half precision, since a repository is no place for large files, and are computed with in single
precision, since few CPUs are fast in half. What the student shares with its teacher are links to the teacher's files.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import sys
from pathlib import Path

import torch
import yaml
from PIL import Image
from PIL.Image import Resampling

from pipeline.errors import StillmotionError
from pipeline.optimise.packaged import ways_to_run
from pipeline.packaging.card import model_card
from pipeline.packaging.package import KEPT_FIGURES, max_difference
from pipeline.quiet import quiet_libraries
from pipeline.runs.results import read_result
from pipeline.serve.engine import Animator
from pipeline.serve.request import AnimationRequest
from pipeline.serve.sources import EMBEDDED_STUDENT, EMBEDDED_TEACHER, open_checkpoint
from pipeline.serve.store import write_package

# Rounding weights to half precision may move a colour by so many steps of 255.
_MOST_DIFFERENCE = 4

_ROOT = Path(__file__).parents[1]
_PHOTOGRAPHS = (("chelsea", "the camera is still"), ("coffee", "the camera pans left"))  # held back from training
_TILE = 96  # pixels


def ship_teacher(trained: Path, out: Path = EMBEDDED_TEACHER) -> Animator:
    """Put a trained teacher into a folder; gives it as it is loaded from there.

    Raises:
        StillmotionError: half precision changes its frames visibly.
    """
    source = open_checkpoint(trained, device="cpu")
    shutil.rmtree(out, ignore_errors=True)
    open_checkpoint(trained, device="cpu").pipe.to(torch.float16).save_pretrained(out)
    for path in out.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("_name_or_path", None) is not None:  # a folder of the machine that trained it
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shipped = open_checkpoint(out, device="cpu")
    _check(source, shipped, out)
    return shipped


def ship_student(run: Path, out: Path = EMBEDDED_STUDENT) -> Animator:
    """Package the student of a run's 03_distill into a folder; gives it as a server loads it.

    Raises:
        StillmotionError: the run has no student, or half precision changes its frames visibly.
    """
    result = read_result(run, "03_distill")
    source = open_checkpoint(str(result.metrics["source"]), device="cpu")
    figures = dict(result.metrics["evaluation"])  # type: ignore[call-overload]  # an object of figures
    way = ways_to_run(source.pipe)[0]
    kept = {name: figures[name] for name in KEPT_FIGURES if figures.get(name) is not None}
    info = source.info.changed(
        teacher="embedded student",
        metrics=kept,
        runtime=way.runtime,
        threads=way.threads,
        precision="float32",
    )
    half = open_checkpoint(str(result.metrics["source"]), device="cpu").pipe.to(torch.float16)
    shutil.rmtree(out, ignore_errors=True)
    write_package(half, out, info, model_card(info, figures, embedded=True))
    _link(out, EMBEDDED_TEACHER)
    shipped = Animator.load(out, device="cpu")
    _check(source, shipped, out)
    return shipped


def draw_picture(out: Path = _ROOT / "docs/images/demo.webp") -> None:
    """Draw the README's picture, an animation: pictures, and below them the clips that the shipped student makes."""
    from skimage import data

    samples = yaml.safe_load((_ROOT / "assets/samples.yaml").read_text())
    pictures = [
        *((Image.open(_ROOT / "assets" / one["picture"]), one["prompt"]) for one in samples),
        *((Image.fromarray(getattr(data, name)()), prompt) for name, prompt in _PHOTOGRAPHS),
    ]
    student = Animator.load(EMBEDDED_STUDENT, device="cpu")
    clips = [student.animate(one.convert("RGB"), AnimationRequest(prompt, seed=1)).clip for one, prompt in pictures]
    frames = []
    for number in range(len(clips[0])):
        frame = Image.new("RGB", (_TILE * len(clips), 2 * _TILE))
        for column, ((picture, _), clip) in enumerate(zip(pictures, clips, strict=True)):
            for row, tile in enumerate((picture.convert("RGB"), Image.fromarray(clip[number]))):
                side = min(tile.size)
                left, top = (tile.width - side) // 2, (tile.height - side) // 2
                square = tile.resize((_TILE, _TILE), Resampling.LANCZOS, (left, top, left + side, top + side))
                frame.paste(square, (column * _TILE, row * _TILE))
        frames.append(frame)
    duration = round(1000 / student.info.fps)
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=duration, loop=0, quality=80, method=6)


def _link(out: Path, teacher: Path) -> None:
    """Put links in the place of weights that are the teacher's."""
    for path in out.rglob("*.safetensors"):
        other = teacher / path.relative_to(out)
        if other.is_file() and filecmp.cmp(path, other, shallow=False):
            path.unlink()
            path.symlink_to(os.path.relpath(other, path.parent))


def _check(source: Animator, shipped: Animator, out: Path) -> None:
    difference = max_difference(source, shipped)
    if difference > _MOST_DIFFERENCE:
        raise StillmotionError(f"{out}: half precision changes frames by up to {difference} of 255")
    sys.stdout.write(f"{out}: frames within {difference} of 255 of the trained weights'\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("teacher", "student", "picture"))
    parser.add_argument("folder", type=Path, nargs="?", help="of the trained teacher, or of the student's run")
    quiet_libraries()
    options = parser.parse_args()
    if options.what == "picture":
        draw_picture()
    elif options.folder is None:
        parser.error("folder: missing")
    else:
        (ship_teacher if options.what == "teacher" else ship_student)(options.folder)
