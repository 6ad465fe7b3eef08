"""The command `evaluate --pictures`: figures of a model on pictures without true clips."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..console import tell

if TYPE_CHECKING:
    from ..judge.gates import Gates
    from ..judge.judging import Sampling
    from ..judge.on_pictures import Progress
    from ..judge.perception import Perception
    from ..serve.engine import Animator


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that have no meaning with pictures, before anything is loaded."""
    if options.i3d is not None:
        options.usage_error("--i3d: FVD is a distance to true clips, which pictures do not have; leave it out")
    if (options.compare or options.gates is not None) and not options.teacher:
        options.usage_error("--pictures with --compare or --gates: name the teacher, as in --compare FOLDER")


def judge(
    options: argparse.Namespace,
    model: Animator,
    teacher: Animator | None,
    gates: Gates | None,
    sampling: Sampling | None,
    perception: Perception,
    progress: Progress,
) -> dict[str, Any]:
    """Judge a model on pictures, beside its teacher where the options say so.

    Raises:
        StillmotionError: a picture cannot be read, or the models cannot be compared.
    """
    from ..judge.gates import GateFailed, check_pictures
    from ..judge.on_pictures import compare_on_pictures, evaluate_on_pictures
    from ..judge.photographs import read_pictures
    from ..judge.real_clips import EfficientNetLite0
    from ..runs.held_out import listed

    if gates is not None:
        gates.on_pictures()  # before hours of work
    features = EfficientNetLite0(str(model.pipe.device)) if options.features else None
    pictures = read_pictures(listed(options.pictures)[: options.clips])
    tell(f"{len(pictures)} pictures: {', '.join(one.name for one in pictures)}")
    if not (options.compare or gates is not None):
        return evaluate_on_pictures(
            model,
            pictures,
            options.seed,
            progress,
            teacher=teacher,
            sampling=sampling,
            seeds_per_clip=options.diversity,
            perception=perception,
            features=features,
        ).to_dict()
    assert teacher is not None
    comparison = compare_on_pictures(
        model,
        teacher,
        pictures,
        options.seed,
        progress,
        seeds_per_clip=options.diversity,
        perception=perception,
        features=features,
    )
    results = [] if gates is None else check_pictures(comparison, gates)
    if not all(result.passed for result in results):
        options.failure = GateFailed(comparison, results)  # said after the figures, which are wanted all the same
    return {
        **comparison.student.to_dict(),
        "comparison": comparison.to_dict(),
        "gates": [result.to_dict() for result in results],
    }
