"""Clips of a model on held-out pictures, and the figures of each single clip."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..clips import Scenes, classify_motion, measure_motion
from ..clips.motion import colour_of
from ..model.example import first_pass
from ..model.guidance import Guidance, guidance_for
from ..model.sampling import PlainDenoiser, evaluations
from .metrics import diversity, flicker, psnr_db, ssim
from .perception import Perception, clip_consistency, clip_score
from .sprite import background_psnr_db, colour_error, outline_iou

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline
    from ..serve.engine import Animator

R = TypeVar("R")
"""Figures of one candidate."""

# Further seeds of a clip lie this far apart: no other clip's, for up to a million clips.
_SEEDS_APART = 1_000_003


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled where it is not as it was made for.

    Attributes:
        told_scale: of the caption, for a model that is told it; None is the model's own.
    """

    steps: int
    guidance: Guidance
    told_scale: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: {self.steps} is below 1")

    @classmethod
    def of(
        cls,
        pipe: ImageAnimationPipeline,
        steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
    ) -> Sampling:
        """A model's own sampling, with what is given in its place.

        Raises:
            ValueError: a value is out of range; the text begins with its name.
        """
        config = pipe.config
        image = config.image_guidance_scale if image_guidance_scale is None else image_guidance_scale
        return cls(config.num_inference_steps if steps is None else steps, *guidance_for(config, guidance_scale, image))


@dataclass(frozen=True)
class Candidate:
    """A model, and how it is sampled; None is as it was made for."""

    animator: Animator
    sampling: Sampling | None = None

    @property
    def pipe(self) -> ImageAnimationPipeline:
        return self.animator.pipe

    @property
    def name(self) -> str:
        """The model's; with steps and branches where it is sampled otherwise: "embedded teacher, 8 x 1"."""
        if self.sampling is None:
            return self.animator.name
        return f"{self.animator.name}, {self.sampling.steps} x {self.sampling.guidance.passes}"

    @property
    def steps(self) -> int:
        return self.animator.info.steps if self.sampling is None else self.sampling.steps

    @property
    def passes(self) -> int:
        if self.sampling is None:
            return self.animator.info.passes
        return self.evaluations * self.sampling.guidance.passes

    @property
    def evaluations(self) -> int:
        """Calls of the network on all branches at once; a solver may take more than one a step."""
        return evaluations(self.pipe.scheduler, self.steps)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the parameters of all networks."""
        each = (p for network in self.pipe.networks for p in network.parameters())
        return sum(p.numel() * p.element_size() for p in each)

    def operations(self, side: int) -> int:
        """Floating-point operations of the network's passes for one clip, as plain PyTorch computes them.

        Counted in the first pass of a request and multiplied by the passes: each computes the same.

        Args:
            side: of the clip, in pixels.
        """
        first = first_pass(self.pipe, height=side, width=side, **self.options)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            PlainDenoiser(self.pipe).start(first.cond)(first.latents, first.timestep)
        # The first pass is of all guidance branches where the family stacks them, and of one elsewhere.
        calls = self.evaluations if self.pipe.family.stacks_branches else self.passes
        return int(counter.get_total_flops()) * calls

    @property
    def options(self) -> dict[str, Any]:
        """Return what a call is given where it is not sampled as it was made for."""
        if self.sampling is None:
            return {}
        told = self.pipe.config.guidance_range is not None
        return {
            "num_inference_steps": self.sampling.steps,
            "guidance_scale": self.sampling.told_scale if told else self.sampling.guidance.text,
            "image_guidance_scale": self.sampling.guidance.image if self.pipe.family.drops_picture else None,
        }

    def animate(self, batch: Scenes, seeds: Sequence[int], side: int) -> Tensor:
        """Return clips from the batch's pictures, `(batch, 3, frames, side, side)`, float in [0, 1]."""
        # Published I2VGen-XL checkpoints draw their picture latents from torch's global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds[0])
            video = self.pipe(
                batch.pictures(),
                batch.captions if self.animator.info.takes_prompt else None,
                last_image=batch.pictures(-1) if self.animator.info.needs_last_image else None,
                height=side,
                width=side,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="pt",
                **self.options,
            ).frames
        return cast(Tensor, video.float().cpu().transpose(1, 2))


def candidates_of(students: Mapping[str, Animator], teacher: Animator) -> dict[str, Candidate]:
    """Return what students are judged with: their teacher, in full and with as few steps or passes, and themselves."""
    candidates = {"teacher": Candidate(teacher)}
    for name, student in students.items():
        steps, passes = student.info.steps, student.info.passes
        candidates[f"guided {steps}"] = Candidate(teacher, Sampling.of(teacher.pipe, steps=steps))
        candidates[f"undistilled {passes}"] = Candidate(teacher, Sampling(passes, Guidance(1.0, 1.0)))
        candidates[f"student {name}"] = Candidate(student)
    return candidates


def beside_teacher(name: str, student: Animator, results: Mapping[str, R]) -> tuple[R, R, R, R]:
    """Return the fields of `BesideTeacher`, from the results of all candidates."""
    keys = ("teacher", f"guided {student.info.steps}", f"undistilled {student.info.passes}", f"student {name}")
    full, guided, alone, own = (results[key] for key in keys)
    return full, guided, alone, own


@dataclass(frozen=True)
class BesideTeacher(Generic[R]):
    """A student beside its teacher: the same pictures, captions and noise.

    Attributes:
        teacher: in full.
        undistilled_guided: the teacher at the student's steps, with all its guidance branches.
        undistilled: the teacher with as many passes as the student has, without guidance.
        student: as it was made for.
    """

    teacher: R
    undistilled_guided: R
    undistilled: R
    student: R

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return {field.name: getattr(self, field.name).to_dict() for field in fields(self)}


@dataclass
class Trial:
    """A candidate with what it has shown so far.

    Attributes:
        side: of the clips that it makes, in pixels. Figures are taken at the size of the true clips.
        seeds_per_clip: clips of each picture; only the first of them is timed and judged.
        asked, seen: the motion of each clip, as captioned and as it is.
        figures: figures of each clip, by their names in `EvaluationResult`; those that cannot be told are left out.
    """

    candidate: Candidate
    side: int
    seeds_per_clip: int = 1
    perception: Perception = field(default_factory=Perception)
    asked: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    features: list[Tensor] = field(default_factory=list)
    features_of_truth: list[Tensor] = field(default_factory=list)

    def take(self, batch: Scenes, seeds: Sequence[int], target: Tensor | None = None) -> Tensor:
        """Animate a batch and judge it.

        Args:
            target: the teacher's clips from the same noise.

        Returns:
            The clips, `(batch, 3, frames, size, size)`, float in [0, 1], of the true clips' size.
        """
        began = time.perf_counter()
        full = self.candidate.animate(batch, seeds, self.side)
        self.seconds += time.perf_counter() - began
        video = to_size(full, batch.clips.shape[-1])
        self._judge(full, video, batch, seeds, target)
        if self.perception.features is not None:
            self.features.append(self.perception.features(video))
            self.features_of_truth.append(self.perception.features(batch.clips))
        return video

    def _judge(self, full: Tensor, video: Tensor, batch: Scenes, seeds: Sequence[int], target: Tensor | None) -> None:
        clip = self.perception.clip
        figures: dict[str, Tensor | None] = {
            "first_frame_psnr_db": psnr_db(video[:, :, 0], batch.clips[:, :, 0]),
            "vae_psnr_db": vae_psnr_db(self.candidate.pipe, batch, self.side),
            "ground_truth_psnr_db": psnr_db(video, batch.clips),
            "flicker": flicker(video),
            "flicker_of_truth": flicker(batch.clips),
            "psnr_to_teacher_db": None if target is None else psnr_db(video, target),
            "ssim_to_teacher": None if target is None else ssim(video, target),
            "diversity": self._diversity(video, batch, seeds),
            "clip_score": None if clip is None else clip_score(full, batch.captions, clip),
            "clip_consistency": None if clip is None else clip_consistency(full, clip),
        }
        for name, of_each in figures.items():
            if of_each is not None:
                self.figures.setdefault(name, []).extend(of_each.tolist())
        for made, scene in zip(video, batch.scenes, strict=True):
            known = (made, scene.clip, scene.mask)
            self.figures.setdefault("outline_iou", []).append(outline_iou(*known, scene.background))
            self.figures.setdefault("colour_error", []).append(colour_error(*known, scene.background))
            self.figures.setdefault("background_psnr_db", []).append(background_psnr_db(*known))
            assert scene.sprite is not None  # scenes to judge have one
            self.asked.append(scene.sprite.motion)
            paint = colour_of(scene.clip[:, 0], scene.mask[0])
            self.seen.append(classify_motion(measure_motion(made, scene.background, paint)))

    def _diversity(self, video: Tensor, batch: Scenes, seeds: Sequence[int]) -> Tensor | None:
        if self.seeds_per_clip == 1:
            return None
        others = []
        for k in range(1, self.seeds_per_clip):
            other = self.candidate.animate(batch, [seed + k * _SEEDS_APART for seed in seeds], self.side)
            others.append(to_size(other, video.shape[-1]))
        return diversity(torch.stack([video, *others], dim=1))  # (batch, seeds, 3, frames, size, size)


def to_size(video: Tensor, size: int) -> Tensor:
    """Return square clips `(batch, 3, frames, side, side)` at another size, by the mean of the area."""
    if video.shape[-1] == size:
        return video
    frames = video.shape[2]
    flat = F.interpolate(video.transpose(1, 2).flatten(0, 1), size=(size, size), mode="area")
    return cast(Tensor, flat.unflatten(0, (-1, frames))).transpose(1, 2)


@torch.no_grad()
def vae_psnr_db(pipe: ImageAnimationPipeline, batch: Scenes, side: int) -> Tensor:
    """Return PSNR of each clip's picture after one round through the autoencoder, `(batch,)`, in dB.

    Args:
        side: of the pictures that the autoencoder sees, in pixels.
    """
    pictures = batch.clips[:, :, 0]  # (batch, 3, size, size)
    if pictures.shape[-1] != side:
        enlarged = F.interpolate(pictures, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    else:
        enlarged = pictures
    latents = pipe.family.encode_clip(pipe.parts, (enlarged * 2 - 1)[:, :, None])
    decoded = (pipe.decode_latents(latents, chunk=1).cpu() + 1) / 2  # (batch, 3, 1, side, side)
    return psnr_db(to_size(decoded, pictures.shape[-1])[:, :, 0], pictures)
