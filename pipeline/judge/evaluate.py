"""Judges a model on held-out generated clips, by itself or beside its teacher."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..clips import MOTIONS, SceneGenerator, Scenes
from ..errors import ModelError
from ..machine import dtype_name
from .judging import BesideTeacher, Candidate, Sampling, Trial, beside_teacher, candidates_of, to_size
from .perception import Perception, frechet_distance

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline
    from ..serve.engine import Animator

# Motion is read from the picture's geometry, so that more pixels than this tell nothing new.
_MOST_PIXELS_A_SIDE = 128

Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all) after each batch."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Figures of a model on held-out clips: means over clips where nothing else is said; PSNR values are in dB.

    Attributes:
        model: its tag, folder or name; steps and branches too where it is not sampled as it was made for.
        clips, seed: of the generated clips.
        motion_accuracy: share of clips that move as captioned.
        motion_accuracy_interval: 95 % confidence interval of it (Wilson 1927).
        accuracy_by_motion: the same for the clips of each motion that occurred.
        unclear: clips in which the sprite was lost.
        first_frame_psnr_db: first frame against the picture that was sent.
        vae_psnr_db: that picture after one round through the autoencoder; it bounds the line above.
        ground_truth_psnr_db: all frames against the clip that the picture was taken from. Caption and picture tell
            nearly all of it: how far a sprite gets, and roughly how much it grows.
        outline_iou, outline_iou_p10: median and 10th percentile of the overlap of the sprite's outline with the true
            one, in the last frame.
        colour_error: of the sprite in the last frame, distance in CIE L*a*b*; median.
        background_psnr_db: last frame, outside the sprite, against the true one.
        psnr_to_teacher_db, ssim_to_teacher: all frames against the teacher's from the same noise; None
            for the teacher.
        steps: of the solver.
        passes: calls of the network for an animation: steps times guidance branches.
        operations: floating-point operations of those calls for one clip, in plain PyTorch; None unless compared.
        weights_bytes: of the networks' parameters; None unless compared.
        seconds_per_clip: wall-clock, clips sampled in batches.
        precision: of the network that was judged.
        flicker, flicker_of_truth: mean absolute second difference over time, in steps of 255, of the
            model's clips and of the true ones.
        diversity: mean RMS distance between clips of a picture and caption from different seeds, in steps
            of 255; None unless asked for.
        clip_score, clip_consistency: `pipeline.judge.perception` has the formulae; None without a CLIP model.
        fvd: Fréchet distance to the true clips, at their size, in the features given; None without any, and
            for a single clip.
    """

    model: str
    clips: int
    seed: int
    motion_accuracy: float
    motion_accuracy_interval: tuple[float, float]
    accuracy_by_motion: dict[str, float]
    unclear: int
    first_frame_psnr_db: float
    vae_psnr_db: float
    ground_truth_psnr_db: float
    outline_iou: float
    outline_iou_p10: float
    colour_error: float
    background_psnr_db: float
    psnr_to_teacher_db: float | None = None
    steps: int
    passes: int
    operations: int | None = None
    weights_bytes: int | None = None
    seconds_per_clip: float
    ssim_to_teacher: float | None = None
    flicker: float
    flicker_of_truth: float
    diversity: float | None = None
    clip_score: float | None = None
    clip_consistency: float | None = None
    fvd: float | None = None
    precision: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Comparison(BesideTeacher[EvaluationResult]):
    """A student beside its teacher on generated clips, timed in the same run."""


def evaluate(
    model: Animator,
    clips: int = 32,
    seed: int = 0,
    batch: int = 8,
    teacher: Animator | None = None,
    on_progress: Progress | None = None,
    *,
    sampling: Sampling | None = None,
    seeds_per_clip: int = 1,
    perception: Perception | None = None,
) -> EvaluationResult:
    """Animate the first frames of held-out clips by their captions, and compare.

    Models of another size or of oblong clips are judged on square clips of their shorter side.

    Args:
        clips: how many, of combinations of colour, shape and motion that training never saw.
        seed: of the clips and of the noise. Each clip's noise has a seed of its own, so that the
            figures do not depend on `batch`.
        batch: clips sampled at a time.
        teacher: what a distilled model is compared with; sampled from the same noise.
        sampling: steps and guidance; None: as the model was made for.
        seeds_per_clip: from 2 on, `diversity` is measured; sampling takes as many times as long.
        perception: CLIP model and features, for the figures that need them.

    Raises:
        ValueError: `clips`, `batch` or `seeds_per_clip` is below 1.
        ModelError: the teacher makes clips of another length.
    """
    _check(model, teacher, clips=clips, batch=batch, seeds_per_clip=seeds_per_clip)
    side = _side(model.pipe)
    trial = Trial(Candidate(model, sampling), side, seeds_per_clip, perception or Perception())
    for held_out, seeds in _batches(model, side, clips, seed, batch):
        target = None
        if teacher is not None:
            target = to_size(Candidate(teacher).animate(held_out, seeds, side), held_out.clips.shape[-1])
        trial.take(held_out, seeds, target)
        if on_progress is not None:
            on_progress(len(trial.seen), clips)
    return _summarise(trial, seed)


def compare_students(
    students: Mapping[str, Animator],
    teacher: Animator,
    clips: int = 32,
    seed: int = 0,
    batch: int = 8,
    on_progress: Progress | None = None,
    *,
    seeds_per_clip: int = 1,
    perception: Perception | None = None,
) -> dict[str, Comparison]:
    """Judge students, each beside its teacher and the teacher with as few steps and passes as the student.

    The teacher's clips are sampled once and are what all others are measured against; so are those of as
    few steps or passes where students share these. The undistilled ones use the teacher's own solver. Each
    network is warm before anything is timed.

    Args:
        students: by name; the guidance of each is part of its weights, so that it has one pass a step.
        on_progress: counts the clips of all.

    Other arguments and errors as `evaluate` has them.
    """
    for student in students.values():
        _check(student, teacher, clips=clips, batch=batch, seeds_per_clip=seeds_per_clip)
    side = _side(teacher.pipe)
    trials = {
        key: Trial(candidate, side, seeds_per_clip, perception or Perception())
        for key, candidate in candidates_of(students, teacher).items()
    }
    for number, (held_out, seeds) in enumerate(_batches(teacher, side, clips, seed, batch)):
        if number == 0:
            # Memory pools, kernels and threads are set up by the first call; the teacher comes first and would look
            # slower than it is. Some schedules have no request of a single step, and a student may know its own alone.
            for warm in (Candidate(teacher, Sampling.of(teacher.pipe, steps=2)), *map(Candidate, students.values())):
                warm.animate(held_out, seeds, side)
        target = None
        for trial in trials.values():
            video = trial.take(held_out, seeds, target)
            target = video if target is None else target
            if on_progress is not None:
                on_progress(sum(len(t.seen) for t in trials.values()), clips * len(trials))
    results = {
        key: replace(
            _summarise(trial, seed),
            operations=trial.candidate.operations(side),
            weights_bytes=trial.candidate.weights_bytes,
        )
        for key, trial in trials.items()
    }
    return {name: Comparison(*beside_teacher(name, student, results)) for name, student in students.items()}


def _batches(model: Animator, side: int, clips: int, seed: int, batch: int) -> Iterator[tuple[Scenes, list[int]]]:
    """Held-out clips, each with the seed of its noise."""
    size = min(side, _MOST_PIXELS_A_SIDE)
    generator = SceneGenerator(size, model.info.frames, seed, held_out=True, judged=True)
    for first in range(0, clips, batch):
        held_out = generator.batch(min(batch, clips - first))
        yield held_out, [seed + first + k for k in range(len(held_out.captions))]


def _check(model: Animator, teacher: Animator | None, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: {value} is below 1")
    if teacher is not None and teacher.info.frames != model.info.frames:
        raise ModelError(
            f"{teacher.name}: makes clips of {teacher.info.frames} frames, and {model.name} of "
            f"{model.info.frames}; they cannot be compared frame by frame"
        )


def _side(pipe: ImageAnimationPipeline) -> int:
    return int(min(pipe.default_size))


def _summarise(trial: Trial, seed: int) -> EvaluationResult:
    asked, seen, candidate = trial.asked, trial.seen, trial.candidate
    right = sum(map(operator.eq, asked, seen))
    of_motion = {motion: [s == motion for a, s in zip(asked, seen, strict=True) if a == motion] for motion in MOTIONS}
    low, high = wilson_interval(right, len(seen))
    digits = {"ssim_to_teacher": 4}
    means: dict[str, Any] = {
        name: round(float(np.mean(values)), digits.get(name, 3)) for name, values in trial.figures.items()
    }
    for name in ("outline_iou", "colour_error"):
        means[name] = round(float(np.median(trial.figures[name])), 3)
    means["outline_iou_p10"] = round(float(np.percentile(trial.figures["outline_iou"], 10)), 3)
    fvd = None
    if len(seen) > 1 and trial.features:
        fvd = round(frechet_distance(torch.cat(trial.features), torch.cat(trial.features_of_truth)), 3)
    return EvaluationResult(
        model=candidate.name,
        clips=len(seen),
        seed=seed,
        motion_accuracy=round(right / len(seen), 4),
        motion_accuracy_interval=(round(low, 4), round(high, 4)),
        accuracy_by_motion={motion: round(sum(own) / len(own), 4) for motion, own in of_motion.items() if own},
        unclear=seen.count("unclear"),
        steps=candidate.steps,
        passes=candidate.passes,
        seconds_per_clip=round(trial.seconds / len(seen), 4),
        fvd=fvd,
        precision=dtype_name(candidate.pipe.network.dtype),
        **means,
    )


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share (Wilson 1927), with z = 1.96::

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    p, z = right / count, 1.96
    centre = p + z**2 / (2 * count)
    spread = z * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
