"""Puts a checkpoint into the BentoML store, and proves that what is stored animates as the source does."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image
from safetensors import SafetensorError

from ..errors import ModelError
from ..media.video import Clip
from ..serve.engine import Animator
from ..serve.manifest import ModelInfo
from ..serve.request import AnimationRequest
from ..serve.sources import EMBEDDED_TEACHER, name_of
from .card import model_card

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline
    from ..optimise.packaged import RuntimeChoice
    from ..optimise.runtimes import Runtime

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

# Of a clip in half precision to the one in the source's own. Roundings of each step add up, to 32 dB for a small
# U-Net of 96 passes; below this it is another clip.
_LEAST_PSNR_DB = 20.0


@dataclass(frozen=True)
class Packaged:
    """A model in the store.

    Attributes:
        max_difference: between frames of source and stored model from the same seed, in steps of 255.
        animator: the model as a server loads it.
        ways: to run it that were timed, the best first, where one was to be chosen.
    """

    tag: str
    path: Path
    info: ModelInfo
    max_difference: int
    animator: Animator
    ways: list[RuntimeChoice]


def package(
    source: Animator,
    metrics: Mapping[str, object],
    runtime: Runtime | Literal["auto"] = "eager",
    precision: str = "float32",
    optimisations: Sequence[str] = (),
) -> Packaged:
    """Save a loaded checkpoint into the store, load it from there, and compare the two.

    The source is only read: what is cast, timed or compiled is a copy.

    Args:
        metrics: of `pipeline evaluate`; they go into `animator.json` and the card.
        runtime: what a server runs the network on. "torchscript" and "compile" make their program when
            the server starts; "aot" makes it now, for this kind of machine, the default length and each size of a
            clip, so that a server runs compiled code without compiling. "auto" is the faster of eager and
            torchscript, on all threads or on one, here.
        precision: of network and encoders, as PyTorch names it. Figures in `metrics` of another precision are left out.
        optimisations: further changes that the server makes, by name (`pipeline.optimise.named`). What does not fit the
            server's machine is left out there, and said.

    Raises:
        ModelError: the store cannot be written, or the model animates differently once it is loaded from
            there; the store has a new version only after that was looked at.
        NotApplicable: the network cannot be compiled ahead of time here.
        ValueError: there is no change of such a name, or it does not go with the runtime.
    """
    from ..optimise.named import check_runtime
    from ..optimise.packaged import ways_to_run
    from ..optimise.precision import dtype_of, in_precision
    from ..serve.store import precision_of, save_to_store

    check_runtime(optimisations, runtime)
    before = animate_probe(source)  # a model that computes NaN is refused here, before anything is written
    cast = Animator(in_precision(source.pipe, dtype_of(precision)), source.info, source.name)
    if cast.pipe is source.pipe and runtime in {"auto", "aot"}:
        cast.pipe = copy.deepcopy(source.pipe)
    threads, ways = None, []
    if runtime == "auto":
        ways = ways_to_run(cast.pipe)
        runtime, threads = ways[0].runtime, ways[0].threads
    kept = _figures_of(metrics, precision)
    info = source.info.changed(
        metrics=kept,
        runtime=runtime,
        optimisations=tuple(optimisations),
        precision=precision_of(cast.pipe),
        threads=threads,
    )
    # Figures of another precision are not this model's.
    card = model_card(info, metrics if kept else {}, embedded=source.name == name_of(EMBEDDED_TEACHER))
    loaded: list[tuple[Animator, int]] = []

    def verify(folder: Path, tag: str) -> None:
        stored = Animator.load(folder, name=tag, device=str(source.pipe.device))
        loaded.append((stored, _check_same(cast, stored, before, rounds=bool(optimisations))))

    with TemporaryDirectory() as scratch:
        programs = Path(scratch) / "programs" if runtime == "aot" else None
        if programs is not None:
            _compile(cast.pipe, info, programs)
        try:
            model = save_to_store(cast.pipe, info, card, programs, verify)
        except (OSError, SafetensorError) as error:
            place = os.environ.get("BENTOML_HOME", "~/bentoml")
            raise ModelError(f"the BentoML store ({place}) cannot be written: {error}") from error
    stored, difference = loaded[0]
    return Packaged(str(model.tag), Path(model.path), stored.info, difference, stored, ways)


def _figures_of(metrics: Mapping[str, object], precision: str) -> dict[str, float | int | str | None]:
    """Return the figures that go into `animator.json`: none, where they were taken in another precision."""
    if metrics.get("precision", "float32") != precision:
        return {}
    return {key: value for key in KEPT_FIGURES if isinstance(value := metrics.get(key), (int, float, str))}


def _check_same(cast: Animator, stored: Animator, before: Clip, *, rounds: bool) -> int:
    """Return the largest difference between the source and the stored model, both in its precision, in steps of 255.

    Args:
        cast: the source in the stored model's precision.
        before: what the source makes of the probe as it came.
        rounds: whether the stored model has changes that round; then the precision's limit is theirs.

    Raises:
        ModelError: they animate differently, or the precision shows.
    """
    clip = animate_probe(stored)
    difference = _most(animate_probe(cast), clip)
    if difference > _MOST_DIFFERENCE and not rounds:
        raise ModelError(
            f"{stored.name}: animates differently from {cast.name} (by up to {difference} of 255); not kept"
        )
    error = float(np.mean((before.astype(np.float64) - clip) ** 2))
    psnr = math.inf if error == 0 else 10 * math.log10(255**2 / error)
    if psnr < _LEAST_PSNR_DB:
        raise ModelError(
            f"{stored.name}: in {stored.info.dtype} it is {psnr:.1f} dB from {cast.name} as it came, under the "
            f"limit of {_LEAST_PSNR_DB:g} dB; not kept. Package it in float32{' and without optimisations' * rounds}"
        )
    return difference


def _compile(pipe: ImageAnimationPipeline, info: ModelInfo, folder: Path) -> None:
    from ..optimise import packages
    from ..optimise.base import NotApplicable
    from ..optimise.named import named
    from ..optimise.packaged import tune
    from ..optimise.runtimes import example_of

    applied = tune(pipe, compiled=True)
    try:
        if not applied.has("prepare"):
            raise NotApplicable(f"aot: {applied.skipped[0]}")
        for name in info.optimisations:
            applied.fits(partial(named(name).apply, pipe))
        packages.build(pipe, [example_of(pipe, height=high, width=wide) for high, wide in info.sizes], folder)
    finally:
        applied.undo()


def animate_probe(model: Animator, seed: int = 7) -> Clip:
    """Animate a picture with every brightness and a gradient in each direction, so that no weight can hide."""
    ramp = np.linspace(0, 255, 256, dtype=np.uint8)
    picture = Image.fromarray(
        np.stack([np.tile(ramp, (256, 1)), np.tile(ramp[:, None], (1, 256)), np.full((256, 256), 90, np.uint8)], -1)
    ).resize((model.info.width, model.info.height))
    prompt = "a red circle moves right" if model.info.takes_prompt else ""
    last = picture.transpose(Image.Transpose.ROTATE_180) if model.info.needs_last_image else None
    return model.animate(picture, AnimationRequest(prompt, seed=seed), last_image=last).clip


def max_difference(one: Animator, other: Animator) -> int:
    """Return the largest difference between the frames of two models from one seed, in steps of 255."""
    return _most(animate_probe(one), animate_probe(other))


def _most(one: Clip, other: Clip) -> int:
    return int(np.abs(one.astype(np.int16) - other).max())
