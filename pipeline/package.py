"""Puts a checkpoint into the BentoML store, and proves that what is stored animates as the source does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from .card import model_card
from .engine import AnimationRequest, Animator, ModelInfo
from .errors import ModelError
from .sources import EMBEDDED_TEACHER, name_of

if TYPE_CHECKING:
    from .optimise.choice import Way
    from .optimise.runtimes import Runtime

# Figures of `pipeline evaluate` that describe the model and not the run.
KEPT_FIGURES = (
    "clips",
    "seed",
    "motion_accuracy",
    "first_frame_psnr_db",
    "vae_psnr_db",
    "ground_truth_psnr_db",
    "psnr_to_teacher_db",
)


# A GPU adds in another order where the constants of a request are computed once, and a compiled
# program in another again: a rounding here and there, which nobody sees. On a CPU eager is bit-equal.
_MOST_DIFFERENCE = 2


@dataclass(frozen=True)
class Packaged:
    """A model in the store.

    Attributes:
        tag: `animator:<version>`.
        path: its folder.
        info: its `animator.json`.
        max_difference: between frames of source and stored model from the same seed, in steps of 255.
        animator: the model as a server loads it.
        ways: to run it that were timed, the best first, where one was to be chosen.
    """

    tag: str
    path: Path
    info: ModelInfo
    max_difference: int
    animator: Animator
    ways: list[Way]


def package(
    source: Animator,
    metrics: Mapping[str, object],
    runtime: Runtime | Literal["auto"] = "eager",
    precision: str = "float32",
) -> Packaged:
    """Save a loaded checkpoint into the store, load it from there, and compare the two.

    Args:
        metrics: of `pipeline evaluate`; they go into `animator.json` and the card.
        runtime: what a server runs the U-Net on. "torchscript" and "compile" make their program when
            the server starts; "aot" makes it now, for this kind of machine and the default shape of a
            clip, so that a server runs compiled code without compiling. "auto" is the faster of eager and
            torchscript, on all threads or on one, here.
        precision: of U-Net and encoders, as PyTorch names it. The source is cast to it.

    Raises:
        ModelError: the store cannot be written, or the stored model animates differently; then it
            is taken out of the store again.
        NotApplicable: the U-Net cannot be compiled ahead of time here.
    """
    import bentoml

    from .optimise.choice import ways_to_run
    from .optimise.precision import dtype_of, set_precision
    from .store import save_to_store

    embedded = source.name == name_of(EMBEDDED_TEACHER)
    kept: dict[str, float | int | str | None] = {
        key: value for key in KEPT_FIGURES if isinstance(value := metrics.get(key), (int, float, str))
    }
    set_precision(source.pipe, dtype_of(precision))
    threads, ways = None, []
    if runtime == "auto":
        ways = ways_to_run(source.pipe)
        runtime, threads = ways[0].runtime, ways[0].threads
    info = replace(source.info, metrics=kept, runtime=runtime, precision=precision, threads=threads)
    with ExitStack() as stack:
        programs = None
        if runtime == "aot":
            programs = Path(stack.enter_context(TemporaryDirectory())) / "programs"
            _compile(source, programs)
        try:
            model = save_to_store(source.pipe, info, model_card(info, metrics, embedded=embedded), programs)
        except OSError as error:
            place = os.environ.get("BENTOML_HOME", "~/bentoml")
            raise ModelError(f"the BentoML store ({place}) cannot be written: {error}") from error
    tag, path = str(model.tag), Path(model.path)
    try:
        stored = Animator.load(path, name=tag, device=str(source.pipe.device))
        difference = max_difference(source, stored)
        if difference > _MOST_DIFFERENCE:
            raise ModelError(f"{tag}: animates differently from {source.name} (by up to {difference} of 255); not kept")
    except BaseException:
        bentoml.models.delete(tag)
        raise
    return Packaged(tag, path, stored.info, difference, stored, ways)


def _compile(source: Animator, folder: Path) -> None:
    from .optimise import packages
    from .optimise.prepared import prepare_once
    from .optimise.runtimes import example_of
    from .optimise.tune import tune

    changes = [prepare_once(source.pipe)]
    try:
        changes += tune(source.pipe, compiled=True)
        packages.build(source.pipe, example_of(source.pipe), folder)
    finally:
        for change in reversed(changes):
            change.undo()


def max_difference(one: Animator, other: Animator, seed: int = 7) -> int:
    """Largest difference between the frames of two models from one seed, in steps of 255."""
    size = one.info.width, one.info.height
    # Every brightness and a gradient in each direction, so that no weight can hide.
    ramp = np.linspace(0, 255, 256, dtype=np.uint8)
    picture = Image.fromarray(
        np.stack([np.tile(ramp, (256, 1)), np.tile(ramp[:, None], (1, 256)), np.full((256, 256), 90, np.uint8)], -1)
    ).resize(size)
    request = AnimationRequest("a red circle moves right", seed=seed)
    clips = [model.animate(picture, request).clip.astype(np.int16) for model in (one, other)]
    return int(np.abs(clips[0] - clips[1]).max())
