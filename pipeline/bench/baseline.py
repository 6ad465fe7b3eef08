"""What a model takes as it came: by diffusers' own pipeline, and request by request, for notebooks."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from PIL import Image

from ..machine import peak_memory_mb
from ..optimise.example import PROMPT, example_picture, seeded_request
from ..optimise.timing import Account, clock
from ..spans import listen

if TYPE_CHECKING:
    from ..media.video import Clip
    from ..model.animation import ImageAnimationPipeline
    from ..serve.engine import Animation, AnimationRequest, Animator


class _Progress:
    """Stands for diffusers' progress bar, which is there from the first step to the last."""

    def __init__(self, account: Account) -> None:
        self.account, self.last = account, 0.0

    def __enter__(self) -> _Progress:
        self.last = clock()
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def update(self, _steps: int = 1) -> None:
        began, self.last = self.last, clock()
        self.account.add("step", self.last - began)


def diffusers_request(pipe: ImageAnimationPipeline, account: Account | None = None) -> np.ndarray:
    """Return the clip of `seeded_request` by diffusers' own class, with the same weights; it knows two branches alone.

    Args:
        account: its steps are added to it.
    """
    family, (height, width), config = pipe.family, pipe.default_size, pipe.config
    kind: Any = getattr(diffusers, family.pipeline_class)
    known = inspect.signature(kind.__init__).parameters
    options = {name: config[name] for name in family.options if name in known}
    theirs = kind(**{name: part for name, part in pipe.components.items() if name in known}, **options)
    theirs.progress_bar = lambda *_arguments, **_options: _Progress(account or Account())
    given = {
        "image": example_picture(height, width),
        "prompt": PROMPT,
        "negative_prompt": family.negative_prompt,
        "height": height,
        "width": width,
        "num_frames": config.num_frames,
        "num_inference_steps": config.num_inference_steps,
        **dict.fromkeys(("fps", "target_fps", "frame_rate"), config.fps),
        **dict.fromkeys(("guidance_scale", "max_guidance_scale"), config.guidance_scale),
        "clip_skip": None,  # with transformers 5 what it has by default fails (diffusers #14124)
        "generator": torch.Generator().manual_seed(0),
        "output_type": "np",
    }
    taken = inspect.signature(kind.__call__).parameters
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return np.asarray(theirs(**{name: value for name, value in given.items() if name in taken}).frames[0])


@dataclass(frozen=True)
class Take:
    """One timed request.

    Attributes:
        step_s: seconds of each step.
    """

    animation: Animation
    step_s: tuple[float, ...]


@dataclass(frozen=True)
class Baseline:
    """Medians over several requests, in seconds.

    Attributes:
        request_s: picture and prompt to finished frames.
        step_s: one step of the solver with all its guidance branches.
        pass_s: one call of the network for one branch: a step over its number of branches, which run as one batch.
        rest_s: what is not denoising: encoders and decoder.
        parameters: number of parameters of each component.
        peak_memory_mb: most memory of the process, or of the GPU where there is one.
    """

    requests: int
    request_s: float
    step_s: float
    pass_s: float
    rest_s: float
    parameters: dict[str, int]
    peak_memory_mb: float


def timed_animation(animator: Animator, picture: Image.Image, request: AnimationRequest) -> Take:
    """Animate, with the time of each step."""
    account = Account()
    with listen(account):
        animation = animator.animate(picture, request)
    return Take(animation, tuple(account.parts["step"]))


def baseline(animator: Animator, takes: Sequence[Take]) -> Baseline:
    """Summarise timed requests.

    Args:
        takes: one or more; leave out a first one that warms the machine up.

    Raises:
        ValueError: no takes.
    """
    if not takes:
        raise ValueError("takes: none given")
    modules = {name: part for name, part in animator.pipe.components.items() if isinstance(part, torch.nn.Module)}
    step_s = statistics.median(s for take in takes for s in take.step_s)
    return Baseline(
        requests=len(takes),
        request_s=round(statistics.median(take.animation.compute_s for take in takes), 4),
        step_s=round(step_s, 5),
        pass_s=round(step_s / animator.info.branches, 5),
        rest_s=round(statistics.median(take.animation.compute_s - sum(take.step_s) for take in takes), 4),
        parameters={name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()},
        peak_memory_mb=round(peak_memory_mb(), 1),
    )


def branch_clips(animator: Animator, picture: Image.Image, prompt: str, seed: int) -> dict[str, Clip]:
    """Return what each guidance branch makes alone of the same noise, and what they make together.

    Returns:
        By name of the branch, in the order of the formula; then "guided". A student has no branches, since
        guidance is part of its weights: "guided" alone.
    """
    alone = {"unconditional": (0.0, 0.0), "image": (0.0, 1.0), "full": (1.0, 1.0)}
    scales: dict[str, dict[str, float]] = {"guided": {}}
    if not animator.info.guidance_distilled:
        named = {name: {"guidance_scale": t, "image_guidance_scale": i} for name, (t, i) in alone.items()}
        scales = {**named, **scales}
    clips = {name: seeded_request(animator.pipe, picture, prompt, seed, **own) for name, own in scales.items()}
    return {name: (clip * 255).round().astype(np.uint8) for name, clip in clips.items()}
