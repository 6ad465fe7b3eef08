"""Judges a model on held-out generated clips."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .clips import MOTIONS, ClipBatch, ClipGenerator, classify_motion, measure_motion
from .metrics import psnr_db

if TYPE_CHECKING:
    from .animation import ImageAnimationPipeline
    from .engine import Animator

# Motion is read from the picture's geometry, so that more pixels than this tell nothing new.
_MOST_PIXELS_A_SIDE = 128

Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all) after each batch."""


@dataclass(frozen=True)
class EvaluationResult:
    """Figures of a model on held-out clips. PSNR values are means over clips, in dB.

    Attributes:
        model: its tag, folder or name.
        clips, seed: of the generated clips.
        motion_accuracy: share of clips that move as captioned.
        motion_accuracy_interval: 95 % confidence interval of it (Wilson 1927).
        accuracy_by_motion: the same for the clips of each motion that occurred.
        unclear: clips in which the sprite was lost.
        first_frame_psnr_db: first frame against the picture that was sent.
        vae_psnr_db: that picture after one round through the autoencoder; it bounds the line above.
        ground_truth_psnr_db: all frames against the clip that the picture was taken from. A caption
            does not tell the speed, so that a perfect model would not reach the bound either.
        psnr_to_teacher_db: all frames against the teacher's from the same noise; None for the teacher.
        steps: of the solver.
        passes: U-Net calls of an animation: steps times guidance branches.
        seconds_per_clip: wall-clock, clips sampled in batches.
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
    psnr_to_teacher_db: float | None
    steps: int
    passes: int
    seconds_per_clip: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    model: Animator,
    clips: int = 32,
    seed: int = 0,
    batch: int = 8,
    teacher: Animator | None = None,
    on_progress: Progress | None = None,
) -> EvaluationResult:
    """Animate the first frames of held-out clips by their captions, and compare.

    Models of another size or of oblong clips are judged on square clips of their shorter side.

    Args:
        model: sampled in full, with the steps and the guidance that it is made for.
        clips: how many, of combinations of colour, shape and motion that training never saw.
        seed: of the clips and of the noise. Each clip's noise has a seed of its own, so that the
            figures do not depend on `batch`.
        batch: clips sampled at a time.
        teacher: what a distilled model is compared with; sampled from the same noise.

    Raises:
        ValueError: `clips` or `batch` is below 1.
    """
    for name, value in (("clips", clips), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}: {value} is below 1")
    side = _side(model.pipe)
    generator = ClipGenerator(min(side, _MOST_PIXELS_A_SIDE), model.info.frames, seed=seed, held_out=True)
    judged: list[_Judged] = []
    spent_on_model = 0.0
    while len(judged) < clips:
        held_out = generator.batch(min(batch, clips - len(judged)))
        seeds = [seed + len(judged) + k for k in range(len(held_out.captions))]
        began = time.perf_counter()
        video = _animate(model.pipe, held_out, seeds, side)
        spent_on_model += time.perf_counter() - began
        target = None if teacher is None else _animate(teacher.pipe, held_out, seeds, side)
        judged += _judge(model.pipe, video, held_out, target, side)
        if on_progress is not None:
            on_progress(len(judged), clips)
    return _summarise(model, judged, seed, spent_on_model / clips)


@dataclass(frozen=True)
class _Judged:
    """Figures of one clip."""

    asked: str
    seen: str
    first_frame_psnr_db: float
    vae_psnr_db: float
    ground_truth_psnr_db: float
    psnr_to_teacher_db: float | None


def _side(pipe: ImageAnimationPipeline) -> int:
    return int(min(pipe.default_size))


def _animate(pipe: ImageAnimationPipeline, batch: ClipBatch, seeds: list[int], side: int) -> Tensor:
    """Clips from the batch's pictures, `(batch, 3, frames, size, size)`, float in [0, 1], of the batch's size."""
    # Published I2VGen-XL checkpoints draw their picture latents from torch's global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])
        video = pipe(
            pictures_of(batch),
            batch.captions,
            height=side,
            width=side,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).frames
    video = video.float().cpu().transpose(1, 2)  # (batch, 3, frames, side, side)
    return _to_size(video, batch.clips.shape[-1])


def _to_size(video: Tensor, size: int) -> Tensor:
    if video.shape[-1] == size:
        return video
    frames = video.shape[2]
    flat = F.interpolate(video.transpose(1, 2).flatten(0, 1), size=(size, size), mode="area")
    return cast(Tensor, flat.unflatten(0, (-1, frames))).transpose(1, 2)


def _judge(
    pipe: ImageAnimationPipeline, video: Tensor, batch: ClipBatch, target: Tensor | None, side: int
) -> list[_Judged]:
    first, bound = first_frame_psnr_db(video, batch), vae_psnr_db(pipe, batch, side)
    truth = psnr_db(video, batch.clips)
    to_teacher = None if target is None else psnr_db(video, target)
    return [
        _Judged(
            asked=spec.motion,
            seen=classify_motion(measure_motion(video[k], batch.backgrounds[k], batch.colours[k])),
            first_frame_psnr_db=float(first[k]),
            vae_psnr_db=float(bound[k]),
            ground_truth_psnr_db=float(truth[k]),
            psnr_to_teacher_db=None if to_teacher is None else float(to_teacher[k]),
        )
        for k, spec in enumerate(batch.specs)
    ]


def _summarise(model: Animator, judged: list[_Judged], seed: int, seconds_per_clip: float) -> EvaluationResult:
    right = sum(j.asked == j.seen for j in judged)
    to_teacher = [j.psnr_to_teacher_db for j in judged if j.psnr_to_teacher_db is not None]
    by_motion = {}
    for motion in MOTIONS:
        of_motion = [j for j in judged if j.asked == motion]
        if of_motion:
            by_motion[motion] = round(sum(j.seen == motion for j in of_motion) / len(of_motion), 4)
    low, high = wilson_interval(right, len(judged))
    return EvaluationResult(
        model=model.name,
        clips=len(judged),
        seed=seed,
        motion_accuracy=round(right / len(judged), 4),
        motion_accuracy_interval=(round(low, 4), round(high, 4)),
        accuracy_by_motion=by_motion,
        unclear=sum(j.seen == "unclear" for j in judged),
        first_frame_psnr_db=_mean(j.first_frame_psnr_db for j in judged),
        vae_psnr_db=_mean(j.vae_psnr_db for j in judged),
        ground_truth_psnr_db=_mean(j.ground_truth_psnr_db for j in judged),
        psnr_to_teacher_db=_mean(to_teacher) if to_teacher else None,
        steps=model.info.steps,
        passes=model.info.passes,
        seconds_per_clip=round(seconds_per_clip, 3),
    )


def _mean(values: Iterable[float]) -> float:
    return round(float(np.mean(list(values))), 3)


def wilson_interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a share (Wilson 1927), 95 % with the default z::

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    p = right / count
    centre = p + z**2 / (2 * count)
    spread = z * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def pictures_of(batch: ClipBatch) -> list[Image.Image]:
    """First frames of generated clips, as the pictures that a person would send."""
    frames = (batch.clips[:, :, 0].permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    return [Image.fromarray(frame) for frame in frames]


def first_frame_psnr_db(video: Tensor, batch: ClipBatch) -> Tensor:
    """PSNR of each clip's first frame against the picture it was made from, `(batch,)`, in dB.

    Args:
        video: `(batch, 3, frames, size, size)`, float in [0, 1].
    """
    return psnr_db(video[:, :, 0], batch.clips[:, :, 0])


@torch.no_grad()
def vae_psnr_db(pipe: ImageAnimationPipeline, batch: ClipBatch, side: int) -> Tensor:
    """PSNR of each clip's picture after one round through the autoencoder, `(batch,)`, in dB.

    Args:
        side: of the pictures that the autoencoder sees, in pixels.
    """
    pictures = batch.clips[:, :, 0]  # (batch, 3, size, size)
    if pictures.shape[-1] != side:
        enlarged = F.interpolate(pictures, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    else:
        enlarged = pictures
    pixels = (enlarged * 2 - 1).to(pipe.device)
    posterior = pipe.vae.encode(pixels.to(pipe.vae.dtype)).latent_dist
    latents = (posterior.mode() * pipe.vae.config.scaling_factor)[:, :, None]
    decoded = (pipe.decode_latents(latents, chunk=1).cpu() + 1) / 2  # (batch, 3, 1, side, side)
    return psnr_db(_to_size(decoded, pictures.shape[-1])[:, :, 0], pictures)
