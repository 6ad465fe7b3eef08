"""Baseline figures of a model: time, parameters and memory of plain requests."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..machine import peak_memory_mb
from ..media.video import Clip
from ..serve.engine import Animation, Animator
from ..serve.request import AnimationRequest


@dataclass(frozen=True)
class Take:
    """One timed request.

    Attributes:
        step_s: seconds of each step but the first, whose start is not seen from outside.
    """

    animation: Animation
    step_s: tuple[float, ...]


@dataclass(frozen=True)
class Baseline:
    """Medians over several requests, in seconds.

    Attributes:
        request_s: picture and prompt to finished frames.
        step_s: one step of the solver with all its guidance branches.
        pass_s: one U-Net call: a step over its number of branches, which run as one batch.
        rest_s: what is not denoising: encoders, decoder, and the first step's share of set-up.
        parameters: of each component, in numbers.
        peak_memory_mb: of the process, or of the GPU where there is one.
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
    ends: list[float] = []
    animation = animator.animate(picture, request, on_step=lambda _done, _total: ends.append(time.perf_counter()))
    return Take(animation, tuple(float(s) for s in np.diff(ends)))


def baseline(animator: Animator, takes: Sequence[Take]) -> Baseline:
    """Summarise timed requests.

    Args:
        takes: one or more; leave out a first one that warms the machine up.

    Raises:
        ValueError: no takes.
    """
    if not takes:
        raise ValueError("takes: none given")
    info = animator.info
    request_s = statistics.median(take.animation.compute_s for take in takes)
    steps = [s for take in takes for s in take.step_s]
    # A solver of one step has no second one to time.
    step_s = statistics.median(steps) if steps else request_s / info.evaluations
    return Baseline(
        requests=len(takes),
        request_s=round(request_s, 4),
        step_s=round(step_s, 5),
        pass_s=round(step_s / info.branches, 5),
        rest_s=round(max(0.0, request_s - step_s * info.evaluations), 4),
        parameters=parameters(animator),
        peak_memory_mb=round(peak_memory_mb(), 1),
    )


def parameters(animator: Animator) -> dict[str, int]:
    """Number of parameters of each component that has any."""
    modules = {name: part for name, part in animator.pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}


def branch_clips(animator: Animator, picture: Image.Image, prompt: str, seed: int) -> dict[str, Clip]:
    """What each guidance branch makes alone of the same noise, and what they make together.

    Returns:
        By name of the branch, in the order of the formula; then "guided". A student has no branches, since
        guidance is part of its weights: "guided" alone.
    """
    guided = animator.animate(picture, AnimationRequest(prompt, seed=seed)).clip
    if animator.info.guidance_distilled:
        return {"guided": guided}
    alone = {"unconditional": (0.0, 0.0), "image": (0.0, 1.0), "full": (1.0, 1.0)}
    made = {name: _sample(animator, picture, prompt, seed, *scales) for name, scales in alone.items()}
    return {**made, "guided": guided}


def _sample(
    animator: Animator, picture: Image.Image, prompt: str, seed: int, text_scale: float, image_scale: float
) -> Clip:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        frames = animator.pipe(
            picture,
            prompt,
            guidance_scale=text_scale,
            image_guidance_scale=image_scale,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).frames[0]
    clip: Clip = (np.asarray(frames) * 255).round().astype(np.uint8)
    return clip
