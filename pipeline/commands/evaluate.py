"""The command `evaluate`: figures of a model, beside its teacher where asked, and gates."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import Counter, tell
from . import evaluate_pictures
from .options import add_model, open_model, positive

if TYPE_CHECKING:
    from ..judge.gates import Gates
    from ..judge.judging import Sampling
    from ..judge.perception import Perception
    from ..serve.engine import Animator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of `evaluate`."""
    parser.add_argument("--clips", type=positive, default=64, metavar="N", help="how many (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="of clips and noise (default: 0)")
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="clips at a time (default: 8)")
    parser.add_argument("--teacher", metavar="FOLDER_OR_ID", help="compare with this teacher from the same noise")
    parser.add_argument(
        "--compare",
        nargs="?",
        const=True,
        metavar="TEACHER",
        help="judge teacher and undistilled teacher too, in the same run (default teacher: the shipped one)",
    )
    parser.add_argument(
        "--pictures",
        metavar="FOLDER",
        help="judge on pictures with captions (cat.png, cat.txt) in place of generated clips, one clip at a time; "
        "`photographs` takes eight that scikit-image brings",
    )
    parser.add_argument(
        "--gates",
        metavar="FILE",
        help="fail where the student misses a limit of this YAML file; `default` is the project's; implies --compare",
    )
    parser.add_argument(
        "--features",
        action="store_true",
        help="with --pictures: how alike frames are to EfficientNet-Lite0 too, of a package with its weights",
    )
    parser.add_argument("--steps", type=positive, metavar="N", help="other than the model's own")
    parser.add_argument("--guidance-scale", type=float, metavar="X", help="of the caption, other than the model's own")
    parser.add_argument("--image-guidance-scale", type=float, metavar="X", help="of the picture, likewise")
    parser.add_argument(
        "--diversity",
        type=positive,
        default=1,
        metavar="N",
        help="compare N clips of each picture from different seeds; takes N times as long (default: 1, not measured)",
    )
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help="a CLIPModel on this disk, for the CLIP scores")
    parser.add_argument(
        "--i3d", type=Path, metavar="FILE", help="TorchScript I3D for FVD; loading it runs the code in it, so trust it"
    )
    add_model(parser)


def evaluate_model(options: argparse.Namespace) -> dict[str, Any]:
    """`evaluate`: figures of a model on held-out clips."""
    if isinstance(options.compare, str):
        if options.teacher not in {None, options.compare}:
            options.usage_error(f"--compare {options.compare}: --teacher names another, {options.teacher}; give one")
        options.teacher = options.compare
    comparing = options.compare or options.gates is not None
    resampled = any(
        value is not None for value in (options.steps, options.guidance_scale, options.image_guidance_scale)
    )
    if comparing and resampled:
        options.usage_error("--compare judges the model as it was made for; leave out --steps and guidance scales")
    if options.pictures is not None:
        evaluate_pictures.check_options(options)
    elif options.features:
        options.usage_error("--features: goes with --pictures; generated clips have figures that say more")
    if options.diversity > 1:
        tell(f"{options.diversity} clips of each picture")
    from ..judge.gates import load_gates

    gates = None if options.gates is None else load_gates(options.gates)
    animator = open_model(options.model)
    if gates is not None and options.pictures is None:
        gates.of(animator.info.steps)  # before minutes of work
    from ..serve.sources import open_checkpoint

    teacher = open_checkpoint(options.teacher) if options.teacher or comparing else None
    perception = _perception(options, str(animator.pipe.device))
    if options.pictures is not None:
        sampling = _sampling(options, animator) if resampled else None
        return evaluate_pictures.judge(options, animator, teacher, gates, sampling, perception, Counter("clip"))
    if comparing:
        assert teacher is not None
        return _compare(options, animator, teacher, gates, perception)
    from ..judge.evaluate import evaluate

    return evaluate(
        animator,
        options.clips,
        options.seed,
        options.batch,
        teacher,
        on_progress=Counter("clip"),
        sampling=_sampling(options, animator) if resampled else None,
        seeds_per_clip=options.diversity,
        perception=perception,
    ).to_dict()


def _compare(
    options: argparse.Namespace, student: Animator, teacher: Animator, gates: Gates | None, perception: Perception
) -> dict[str, Any]:
    from ..judge.evaluate import compare_students
    from ..judge.gates import GateFailed, check

    compared = compare_students(
        {"student": student},
        teacher,
        options.clips,
        options.seed,
        options.batch,
        on_progress=Counter("clip"),
        seeds_per_clip=options.diversity,
        perception=perception,
    )
    comparison = compared["student"]
    results = [] if gates is None else check(comparison, gates)
    if not all(result.passed for result in results):
        options.failure = GateFailed(comparison, results)  # said after the figures, which are wanted all the same
    return {
        **comparison.student.to_dict(),
        "comparison": comparison.to_dict(),
        "gates": [result.to_dict() for result in results],
    }


def _sampling(options: argparse.Namespace, animator: Animator) -> Sampling:
    from ..judge.judging import Candidate, Sampling
    from ..model.call_arguments import check_image_scale

    try:
        check_image_scale(animator.pipe.family, options.image_guidance_scale)
        sampling = Sampling.of(animator.pipe, options.steps, options.guidance_scale, options.image_guidance_scale)
    except ValueError as error:
        options.usage_error(f"--{error}".replace("_", "-"))
        raise
    _ = Candidate(animator, sampling).evaluations  # refuses steps that the model does not know
    return sampling


def _perception(options: argparse.Namespace, device: str) -> Perception:
    from ..judge.perception import I3D, ClipModel, Perception

    clip = None if options.clip is None else ClipModel.load(options.clip, device)
    features = None if options.i3d is None else I3D(options.i3d, device)
    if features is not None:
        tell(f"I3D sha256 {features.sha256}")
    return Perception(clip, features)


def lines(result: dict[str, Any]) -> list[str]:
    """Return what `evaluate` prints for people."""
    if "comparison" not in result:
        return [f"{key:26} {value}" for key, value in result.items()]
    from ..judge.gates import GateResult

    columns = list(result["comparison"].values())
    shown = [
        f"{key:26} " + " ".join(f"{_cell(column[key]):>20}" for column in columns)
        for key in columns[0]
        if not isinstance(columns[0][key], (dict, str))
    ]
    heads = f"{'':26} " + " ".join(f"{name:>20}" for name in result["comparison"])
    names = [f"{name:26} {column['model']}" for name, column in result["comparison"].items()]
    gates = [f"{'passed' if gate['passed'] else 'FAILED':6} {GateResult(**gate).line}" for gate in result["gates"]]
    return [*names, "", heads, *shown, *([""] if gates else []), *gates]


def _cell(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " to ".join(str(part) for part in value)
    return "-" if value is None else str(value)
