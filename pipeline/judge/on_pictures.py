"""Judges a model on pictures that have no true clip, by itself or beside its teacher.

One clip is made, judged and let go at a time: one of 121 frames at 1280 x 704 takes 1.3 GB.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError
from ..media.images import centre_crop, to_tensor
from .judging import BesideTeacher, Candidate, Sampling, beside_teacher, candidates_of
from .metrics import diversity, flicker, psnr_db, ssim
from .perception import Perception, clip_consistency, clip_score
from .photographs import Picture
from .real_clips import EfficientNetLite0, check_clip, colours, likeness_db, motion

if TYPE_CHECKING:
    from ..serve.engine import Animator

Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all)."""

_SEEDS_APART = 1_000_003  # further seeds of a clip; no other clip's, for up to a million clips
# Percent of the side a frame: 0.05 pixels at the size that flow is measured at, which noise of three steps of 255
# gives by itself. A teacher that moves less is no measure of motion.
_STILL = 0.02

# Figures of generated clips, which readers of the document expect, and which need a true clip.
_NEED_TRUE_CLIPS = ("motion_accuracy", "motion_accuracy_interval", "unclear", "ground_truth_psnr_db", "fvd")


@dataclass(frozen=True, kw_only=True)
class PictureResult:
    """Figures of a model on pictures. Means over clips; PSNR values are in dB.

    Attributes:
        model: its tag, folder or name; steps and branches too where it is not sampled as it was made for.
        clips, seed: one clip of each picture, and the seed of the first one's noise.
        steps, passes, precision, seconds_per_clip: as `EvaluationResult` has them.
        first_frame_psnr_db, first_frame_ssim: first frame against the picture in the clip's size.
        vae_psnr_db: that picture after one round through the autoencoder; it bounds the line above.
        own_picture_share: share of clips that are nearer to their own picture than to every other one; None for one
            picture.
        own_picture_margin_db: PSNR of a clip's frames to its own picture above that to the others.
        motion: mean optical flow, in percent of the shorter side a second.
        motion_of_teacher: the motion of all clips as a share of the teacher's; 0 where the teacher stands still.
        brightness_trend, brightness_drift, colour_drift, saturation, saturation_drift: `real_clips.colours` says how.
        saturation_of_teacher: as a share of the teacher's.
        flicker: as `EvaluationResult` has it.
        diversity: mean RMS distance between clips of a picture from different seeds, in steps of 255; None unless asked
            for.
        diversity_of_teacher: as a share of the teacher's.
        psnr_to_teacher_db, ssim_to_teacher: all frames against the teacher's from the same noise; None for the teacher.
        efficientnet_lite0_to_picture, efficientnet_lite0_between_frames: mean cosines of its features; None unless
            asked for.
        clip_score, clip_consistency: None without a CLIP model.
    """

    model: str
    clips: int
    seed: int
    steps: int
    passes: int
    precision: str
    seconds_per_clip: float
    first_frame_psnr_db: float
    first_frame_ssim: float
    vae_psnr_db: float
    own_picture_share: float | None = None
    own_picture_margin_db: float | None = None
    motion: float
    motion_of_teacher: float | None = None
    brightness_trend: float
    brightness_drift: float
    colour_drift: float
    saturation: float
    saturation_of_teacher: float | None = None
    saturation_drift: float
    flicker: float
    diversity: float | None = None
    diversity_of_teacher: float | None = None
    psnr_to_teacher_db: float | None = None
    ssim_to_teacher: float | None = None
    efficientnet_lite0_to_picture: float | None = None
    efficientnet_lite0_between_frames: float | None = None
    clip_score: float | None = None
    clip_consistency: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, with None for those of generated clips."""
        return {**asdict(self), **dict.fromkeys(_NEED_TRUE_CLIPS)}


class PictureComparison(BesideTeacher[PictureResult]):
    """A student beside its teacher on pictures."""


def evaluate_on_pictures(
    model: Animator,
    pictures: Sequence[Picture],
    seed: int = 0,
    on_progress: Progress | None = None,
    *,
    teacher: Animator | None = None,
    sampling: Sampling | None = None,
    seeds_per_clip: int = 1,
    perception: Perception | None = None,
    features: EfficientNetLite0 | None = None,
) -> PictureResult:
    """Animate pictures by their captions, and judge the clips.

    Args:
        teacher: what a student is compared with, from the same noise.
        sampling: other steps or guidance of `model`.
        seeds_per_clip: from 2 on, `diversity` is measured; sampling takes as many times as long.
        perception: a CLIP model, for the figures that need it.
        features: for the figures of that name.

    Raises:
        ValueError: there is no picture, or `seeds_per_clip` is below 1.
        ModelError: the teacher makes clips of another length, or a clip holds NaN.
    """
    candidates = {} if teacher is None else {"teacher": Candidate(teacher)}
    candidates["student"] = Candidate(model, sampling)
    return _judge(model, candidates, pictures, seed, on_progress, seeds_per_clip, perception, features)["student"]


def compare_on_pictures(
    student: Animator,
    teacher: Animator,
    pictures: Sequence[Picture],
    seed: int = 0,
    on_progress: Progress | None = None,
    *,
    seeds_per_clip: int = 1,
    perception: Perception | None = None,
    features: EfficientNetLite0 | None = None,
) -> PictureComparison:
    """Judge a student, its teacher, and the teacher with as few steps and with as few passes as the student.

    All make clips of the student's size. Arguments and errors as `evaluate_on_pictures` has them.
    """
    options: dict[str, Any] = {"seeds_per_clip": seeds_per_clip, "perception": perception, "features": features}
    return compare_students_on_pictures({"": student}, teacher, pictures, seed, on_progress, **options)[""]


def compare_students_on_pictures(
    students: Mapping[str, Animator],
    teacher: Animator,
    pictures: Sequence[Picture],
    seed: int = 0,
    on_progress: Progress | None = None,
    *,
    seeds_per_clip: int = 1,
    perception: Perception | None = None,
    features: EfficientNetLite0 | None = None,
) -> dict[str, PictureComparison]:
    """Judge students, by name; the teacher's clips are made once, and those of as few steps or passes too.

    Arguments and errors as `compare_on_pictures` has them.
    """
    first, candidates = next(iter(students.values())), candidates_of(students, teacher)
    results = _judge(first, candidates, pictures, seed, on_progress, seeds_per_clip, perception, features)
    return {name: PictureComparison(*beside_teacher(name, student, results)) for name, student in students.items()}


def _judge(
    model: Animator,
    candidates: Mapping[str, Candidate],
    pictures: Sequence[Picture],
    seed: int,
    on_progress: Progress | None,
    seeds_per_clip: int,
    perception: Perception | None,
    features: EfficientNetLite0 | None,
) -> dict[str, PictureResult]:
    """Judge candidates on each picture; where there is a teacher, it comes first."""
    if not pictures:
        raise ValueError("pictures: there is none")
    if seeds_per_clip < 1:
        raise ValueError(f"seeds_per_clip: {seeds_per_clip} is below 1")
    frames = {one.animator.name: one.animator.info.frames for one in candidates.values()}
    if len(set(frames.values())) > 1:
        each = " and ".join(f"{name} of {count}" for name, count in frames.items())
        raise ModelError(f"clips cannot be compared frame by frame: {each} frames")
    height, width = model.pipe.default_size
    cropped = [replace(one, image=centre_crop(one.image, width, height)) for one in pictures]
    stills = [(to_tensor(one.image)[0] + 1) / 2 for one in cropped]  # (3, height, width) in [0, 1]
    perception = perception or Perception()
    trials = {name: _Trial(candidate, seeds_per_clip, perception, features) for name, candidate in candidates.items()}
    done, total = 0, len(cropped) * len(trials)
    for number, picture in enumerate(cropped):
        target = None
        for name, trial in trials.items():
            video = trial.take(picture, number, stills, seed + number, target)
            target = video if name == "teacher" else target
            done += 1
            if on_progress is not None:
                on_progress(done, total)
    teacher = trials.get("teacher")
    return {name: trial.result(seed, None if trial is teacher else teacher) for name, trial in trials.items()}


def _mean_ssim(video: Tensor, target: Tensor) -> float:
    """Return the mean structural similarity of frames, a few at a time: its moments take 13 times a clip's memory."""
    parts = zip(video.transpose(0, 1).split(8), target.transpose(0, 1).split(8), strict=True)
    return float(torch.cat([ssim(one, other) for one, other in parts]).mean())


@dataclass
class _Trial:
    """A candidate with the figures of the clips that it has made, by name."""

    candidate: Candidate
    seeds: int
    perception: Perception
    features: EfficientNetLite0 | None
    found: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def take(self, picture: Picture, number: int, stills: Sequence[Tensor], seed: int, target: Tensor | None) -> Tensor:
        """Animate a picture and judge the clip.

        Args:
            number: of the picture among `stills`.
            target: the teacher's clip from the same noise.

        Returns:
            The clip, `(3, frames, height, width)`.
        """
        began = time.perf_counter()
        video = self._animate(picture, seed)
        self.seconds += time.perf_counter() - began
        for name, value in self._figures(video, picture, number, stills, seed, target).items():
            self.found.setdefault(name, []).append(value)
        return video

    def _animate(self, picture: Picture, seed: int) -> Tensor:
        candidate, pipe, info = self.candidate, self.candidate.pipe, self.candidate.animator.info
        width, height = picture.image.size
        # Published I2VGen-XL checkpoints draw their picture latents from torch's global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            frames = pipe(
                picture.image,
                picture.caption if info.takes_prompt else None,
                last_image=info.ending(picture.image),
                height=height,
                width=width,
                generator=torch.Generator().manual_seed(seed),
                output_type="pt",
                **candidate.options,
            ).frames[0]
        video = cast(Tensor, frames.float().cpu().transpose(0, 1))
        check_clip(video, candidate.name, picture.name)
        return video

    def _figures(
        self,
        video: Tensor,
        picture: Picture,
        number: int,
        stills: Sequence[Tensor],
        seed: int,
        target: Tensor | None,
    ) -> dict[str, float]:
        still, first = stills[number], video[:, 0]
        found = {
            "first_frame_psnr_db": float(psnr_db(first[None], still[None])),
            "first_frame_ssim": float(ssim(first[None], still[None])),
            "vae_psnr_db": self._vae_psnr_db(still),
            "motion": motion(video, self.candidate.animator.info.fps),
            "flicker": float(flicker(video[None])),
            **colours(video),
        }
        if len(stills) > 1:
            near = likeness_db(video, stills)
            others = near[:number] + near[number + 1 :]
            found["own_picture_share"] = float(near[number] > max(others))
            found["own_picture_margin_db"] = near[number] - float(np.mean(others))
        if target is not None:
            found["psnr_to_teacher_db"] = float(psnr_db(video[None], target[None]))
            found["ssim_to_teacher"] = _mean_ssim(video, target)
        if self.seeds > 1:
            others_of_it = [self._animate(picture, seed + k * _SEEDS_APART) for k in range(1, self.seeds)]
            found["diversity"] = float(diversity(torch.stack([video, *others_of_it])[None]))
        if self.features is not None:
            found |= self.features.figures(video, still)
        if self.perception.clip is not None:
            found["clip_score"] = float(clip_score(video[None], [picture.caption], self.perception.clip))
            found["clip_consistency"] = float(clip_consistency(video[None], self.perception.clip))
        return found

    @torch.no_grad()
    def _vae_psnr_db(self, still: Tensor) -> float:
        pipe = self.candidate.pipe
        latents = pipe.family.encode_clip(pipe.parts, (still * 2 - 1)[None, :, None].to(pipe.device))
        decoded = (pipe.decode_latents(latents, chunk=1).cpu()[:, :, 0] + 1) / 2
        return float(psnr_db(decoded, still[None]))

    def result(self, seed: int, teacher: _Trial | None) -> PictureResult:
        """Return the figures of all clips.

        Args:
            teacher: that shares are taken of; None: there is none, or it is this one.
        """
        means = {name: float(np.mean(values)) for name, values in self.found.items()}
        if teacher is not None:
            still = _STILL * self.candidate.animator.info.fps
            for name, least in (("motion", still), ("saturation", 1e-6), ("diversity", 1e-6)):
                if name in means:
                    base = float(np.mean(teacher.found[name]))
                    means[f"{name}_of_teacher"] = means[name] / base if base > least else 0.0
        count = len(self.found["motion"])
        return PictureResult(
            model=self.candidate.name,
            clips=count,
            seed=seed,
            steps=self.candidate.steps,
            passes=self.candidate.passes,
            precision=str(self.candidate.pipe.network.dtype).removeprefix("torch."),
            seconds_per_clip=round(self.seconds / count, 4),
            **{name: round(value, 4) for name, value in means.items()},
        )
