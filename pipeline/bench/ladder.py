"""The ladder: optimisations one upon the other, each a rung that can be entered and left again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..model.guidance import Guidance
from ..model.solver import log_snr_solver
from ..optimise import packages
from ..optimise.base import Change, NotApplicable
from ..optimise.block_cache import Schedule, cache_blocks, measure_changes, schedule_of
from ..optimise.context import fold_context
from ..optimise.layout import channels_last
from ..optimise.precision import set_precision
from ..optimise.prepared import PreparedDenoiser, Step, prepare_once
from ..optimise.runtimes import (
    Example,
    compile_blocks,
    compile_decoder,
    compile_whole,
    example_of,
    install,
    trace,
)
from ..optimise.tune import attention

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

Apply = Callable[["ImageAnimationPipeline"], Change]

STEPS = 15
"""Of DPM-Solver++ on the log-SNR grid: the article's number."""
_FEW_STEPS = 2

CACHE_THRESHOLD = 0.1
"""Of block caching: the largest at which clips of the shipped teacher stay above 30 dB of those without."""


@dataclass(frozen=True)
class Rung:
    """Optimisations applied together.

    Attributes:
        name: as in the report.
        note: what it is, for people.
        changes: applied in order, undone in reverse.
        kept: whether later rungs stand on this one.
        program: whether the U-Net runs as a program whose operations cannot be counted from outside.
        speed_only: its output is not meant to be looked at.
        steps: of the solver while it is measured, where a whole request would take minutes.
    """

    name: str
    note: str
    changes: tuple[Apply, ...]
    kept: bool = True
    program: bool = False
    speed_only: bool = False
    steps: int | None = None

    def enter(self, pipe: ImageAnimationPipeline) -> ExitStack:
        """Apply the changes; closing the stack undoes them.

        Raises:
            NotApplicable: one of them does not fit; those before it are undone.
        """
        with ExitStack() as stack:
            for apply in self.changes:
                stack.callback(apply(pipe).undo)
            if self.steps is not None:
                stack.callback(plan(pipe, self.steps).undo)
            return stack.pop_all()


@dataclass
class Ladder:
    """Builds the rungs for one pipeline; programs are built once and kept.

    Args:
        unet_dtype, vae_dtype: what the precision rung casts to.
        keep_precision: whether later rungs stand on it (it is faster here, and close enough).
        folder: for ahead-of-time packages.
        whole: as on a GPU: compile the U-Net as a whole and the decoder too, where otherwise its repeated
            blocks are compiled, which takes a fraction of the time to build; and let later rungs stand on
            layout and attention, which gain nothing on a processor.
    """

    pipe: ImageAnimationPipeline
    unet_dtype: torch.dtype
    vae_dtype: torch.dtype
    keep_precision: bool
    folder: Path
    steps: int = STEPS
    whole: bool = False
    build_s: dict[str, float] = field(default_factory=dict)
    _programs: dict[str, tuple[Step, Example]] = field(default_factory=dict)
    _schedule: Schedule | None = None

    def rungs(self, names: Sequence[str] | None = None) -> list[Rung]:
        """The ladder, from the plain teacher upwards.

        Args:
            names: those to be measured; None: all.

        Raises:
            ValueError: a name is none of the ladder's.
        """
        dtype = str(self.unet_dtype).removeprefix("torch.")
        kept: list[Apply] = []
        made: list[Rung] = []

        def rung(
            name: str, note: str, *own: Apply, keep: bool = True, program: bool = False, steps: int | None = None
        ) -> None:
            made.append(Rung(name, note, (*kept, *own), keep, program, steps=steps))
            if keep:
                kept.extend(own)

        rung("teacher", "as the checkpoint has it, float32, PyTorch eager")
        dropped = f"; no faster in a trial, so not kept, and measured on {_FEW_STEPS} steps"
        slower = "" if self.keep_precision else dropped
        few = None if self.keep_precision else _FEW_STEPS
        rung("precision", f"U-Net in {dtype}{slower}", self.precision, keep=self.keep_precision, steps=few)
        rung("context", "context projected once a clip, not once a frame", lambda pipe: fold_context(pipe.network))
        rung("prepare", "keys, values and picture computed once a request, not once a step", prepare_once)
        gpu = "" if self.whole else "; for GPUs, not kept here"
        rung("layout", f"convolutions in channels last{gpu}", lambda pipe: channels_last(pipe.network), keep=self.whole)
        rung("attention", f"the fastest attention for each shape{gpu}", attention, keep=self.whole)
        rung("solver", f"DPM-Solver++ on log-SNR, {self.steps} steps", self.solver)
        rung("block cache", "layers that hardly change are reused between steps", self.block_cache, keep=False)
        rung("torchscript", "traced and frozen", self.torchscript, keep=False, program=True)
        what = "whole U-Net and decoder" if self.whole else "repeated blocks"
        rung("compile", f"torch.compile of the {what}", *self.compile(), keep=False, program=True)
        rung("aot", "U-Net compiled ahead of time, loaded from a file", self.aot, keep=False, program=True)
        made.append(
            Rung(
                "8 x 1",
                "speed of a student of 8 steps and one branch, with the teacher's weights",
                (*kept, lambda pipe: plan(pipe, 8, guidance_scale=1.0, image_guidance_scale=1.0)),
                kept=False,
                speed_only=True,
            )
        )
        if names is None:
            return made
        known = [r.name for r in made]
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(f"rungs: {unknown[0]!r} is not one of {', '.join(known)}")
        return [r for r in made if r.name in names]

    def precision(self, pipe: ImageAnimationPipeline) -> Change:
        return set_precision(pipe, self.unet_dtype, self.vae_dtype)

    def solver(self, pipe: ImageAnimationPipeline) -> Change:
        return use_solver(pipe, self.steps)

    def block_cache(self, pipe: ImageAnimationPipeline) -> Change:
        if self._schedule is None:
            self._schedule = calibrated_schedule(pipe, CACHE_THRESHOLD)
        return cache_blocks(pipe, self._schedule)

    def torchscript(self, pipe: ImageAnimationPipeline) -> Change:
        program, example = self._built("torchscript", pipe, lambda example: trace(pipe, example))
        return install(pipe, program, example, "torchscript", "traced and frozen")

    def compile(self) -> tuple[Apply, ...]:
        if not self.whole:
            return (compile_blocks,)
        return (lambda pipe: compile_whole(pipe, example_of(pipe)), compile_decoder)

    def aot(self, pipe: ImageAnimationPipeline) -> Change:
        def build(example: Example) -> Step:
            packages.build(pipe, example, self.folder)
            change = packages.load(pipe, self.folder)
            assert isinstance(pipe.denoiser, PreparedDenoiser)
            program = pipe.denoiser.run
            change.undo()
            return program

        program, example = self._built("aot", pipe, build)
        return install(pipe, program, example, "aot", "compiled ahead of time")

    def _built(self, name: str, pipe: ImageAnimationPipeline, build: Callable[[Example], Step]) -> tuple[Step, Example]:
        if name not in self._programs:
            example = example_of(pipe)
            began = time.perf_counter()
            self._programs[name] = build(example), example
            self.build_s[name] = round(time.perf_counter() - began, 2)
        return self._programs[name]


def plan(pipe: ImageAnimationPipeline, steps: int, **scales: float) -> Change:
    """Change the default number of steps and the guidance scales of a pipeline."""
    names = ("num_inference_steps", *scales)
    before = {name: pipe.config[name] for name in names}
    pipe.register_to_config(num_inference_steps=steps, **scales)
    guidance = Guidance(pipe.config.guidance_scale, pipe.config.image_guidance_scale)
    return Change("plan", f"{steps} x {guidance.passes} passes", lambda: pipe.register_to_config(**before))


def use_solver(pipe: ImageAnimationPipeline, steps: int = STEPS) -> Change:
    """Sample with DPM-Solver++ on a grid uniform in log-SNR, by default with `steps` steps.

    Raises:
        NotApplicable: the checkpoint's scheduler has no betas (flow matching).
    """
    scheduler = pipe.scheduler
    try:
        solver = log_snr_solver(scheduler)
    except ValueError as error:
        raise NotApplicable(f"solver: {error}") from error
    planned = plan(pipe, steps)
    pipe.scheduler = solver

    def undo() -> None:
        pipe.scheduler = scheduler
        planned.undo()

    return Change("solver", f"DPM-Solver++ with {steps} steps", undo)


def calibrated_schedule(pipe: ImageAnimationPipeline, threshold: float) -> Schedule:
    """Schedule of block caching from the change measured on two requests of default shape."""
    from ..clips import ClipGenerator
    from ..judge.evaluate import pictures_of

    height, width = pipe.default_size
    batch = ClipGenerator(min(height, width, 128), 2, seed=99).batch(2)
    pictures = pictures_of(batch)

    def request(k: int) -> Callable[[], object]:
        return lambda: pipe(
            pictures[k],
            batch.captions[k],
            generator=torch.Generator().manual_seed(k),
            output_type="latent",
        )

    changes = measure_changes(pipe, [request(0), request(1)], pipe.config.num_inference_steps)
    return schedule_of(changes, threshold)


__all__ = ["CACHE_THRESHOLD", "STEPS", "Ladder", "Rung", "calibrated_schedule", "plan", "use_solver"]
