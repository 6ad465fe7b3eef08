"""Baseline figures of a model: time, parameters and memory of plain requests."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ..machine import peak_memory_mb
from ..model.example import seeded_request
from ..optimise.timing import Account
from ..spans import listen

if TYPE_CHECKING:
    from ..media.video import Clip
    from ..serve.engine import Animation, Animator
    from ..serve.request import AnimationRequest


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


def baseline(
    animator: Animator, requests: Sequence[tuple[Image.Image, AnimationRequest]]
) -> tuple[Baseline, list[Animation]]:
    """Animate requests on a machine that is warm, and return their figures and what was made."""
    animations, step_s, rest_s = [], [], []
    for picture, request in requests:
        account = Account()
        with listen(account):
            animations.append(animator.animate(picture, request, last_image=animator.info.ending(picture)))
        step_s += account.parts["step"]
        rest_s.append(animations[-1].compute_s - sum(account.parts["step"]))
    modules = {name: part for name, part in animator.pipe.components.items() if isinstance(part, torch.nn.Module)}
    median_s = statistics.median(step_s)
    figures = Baseline(
        requests=len(animations),
        request_s=round(statistics.median(animation.compute_s for animation in animations), 4),
        step_s=round(median_s, 5),
        pass_s=round(median_s / animator.info.branches, 5),
        rest_s=round(statistics.median(rest_s), 4),
        parameters={name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()},
        peak_memory_mb=round(peak_memory_mb(), 1),
    )
    return figures, animations


def branch_clips(animator: Animator, picture: Image.Image, prompt: str, seed: int) -> dict[str, Clip]:
    """Return what each guidance branch makes alone, by its name in the order of the formula.

    A student has no branches, since guidance is part of its weights: the result is then empty.
    """
    if animator.info.guidance_distilled:
        return {}
    pipe = animator.pipe
    alone: dict[str, tuple[str, float, float | None]] = {"full": (prompt, 1.0, None)}
    if animator.info.image_guidance_scale is not None:
        alone = {"unconditional": (prompt, 0.0, 0.0), "image": (prompt, 0.0, 1.0), "full": (prompt, 1.0, 1.0)}
    elif pipe.family.takes_prompt:
        alone = {"negative": (pipe.family.negative_prompt, 1.0, None), **alone}
    clips = {
        name: seeded_request(pipe, picture, words, seed, guidance_scale=text, image_guidance_scale=image)
        for name, (words, text, image) in alone.items()
    }
    return {name: (clip * 255).round().astype(np.uint8) for name, clip in clips.items()}
