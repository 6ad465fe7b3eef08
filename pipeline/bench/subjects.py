"""What is measured: a request by diffusers' own pipeline, one pass, one update of a student."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import diffusers
import numpy as np
import torch

from ..model.example import PROMPT, FirstPass, example_picture, last_picture
from ..optimise.base import NotApplicable
from ..optimise.timing import Account, clock

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline


class _Progress:
    """Stands for diffusers' progress bar, which is there from the first step to the last."""

    def __init__(self, account: Account) -> None:
        self.account, self.last = account, 0.0

    def __enter__(self) -> Self:
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

    Raises:
        NotApplicable: it counts the tokens of this network wrongly.
    """
    family, (height, width), config = pipe.family, pipe.default_size, pipe.config
    if config.get("expand_timesteps") and tuple(pipe.network.config.patch_size) != (1, 2, 2):
        raise NotApplicable(
            "diffusers' pipeline counts patches of 2 x 2 cells where a first frame is held; this network has others"
        )
    kind: Any = getattr(diffusers, family.pipeline_class)
    known = inspect.signature(kind.__init__).parameters
    options = {name: config[name] for name in family.options if name in known}
    theirs = kind(**{name: part for name, part in pipe.components.items() if name in known}, **options)
    if hasattr(theirs, "target_size"):  # HunyuanVideo-1.5 takes no size, and looks for one of as many pixels
        theirs.target_size = round(math.sqrt(height * width))
    theirs.progress_bar = lambda *_arguments, **_options: _Progress(account or Account())
    given = {
        "image": example_picture(height, width),
        "last_image": last_picture(pipe),
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


def of_branches(first: FirstPass, branches: int | None) -> FirstPass:
    """Return a pass of so many guidance branches, the first ones again where there are fewer."""
    rows = torch.arange(branches or len(first.latents), device=first.latents.device) % len(first.latents)
    return FirstPass(first.latents[rows], first.timestep, {name: t[rows] for name, t in first.cond.items()})


@contextmanager
def updates(
    pipe: ImageAnimationPipeline, folder: Path, settings: Mapping[str, Any]
) -> Iterator[tuple[Callable[[], None], float]]:
    """Give what makes one update of a student, from one clip, and how many million parameters it changes.

    The first update has been made when the block begins: it makes the optimizer's state.
    """
    from ..distill.data import GeneratedSource
    from ..distill.trainer import Distiller, DistillSettings

    source = GeneratedSource(min(*pipe.default_size, 128), 2, 1)
    examples, numbers = source[0], itertools.count()
    own = {
        "student_steps": math.gcd(8, pipe.config.num_inference_steps),
        "mixed_precision": {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(pipe.network.dtype, "no"),
    }
    chosen = DistillSettings(**{**own, **settings})
    distiller = Distiller(pipe, source, chosen, folder)
    trained = round(sum(parameter.numel() for parameter in distiller.trained) / 1e6, 3)

    def update() -> None:
        distiller.update(examples, next(numbers))

    try:
        update()
        yield update, trained
    finally:
        distiller.close()
