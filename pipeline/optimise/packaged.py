"""How a packaged model is made fast when it is loaded, and which runtime is the fastest here: by measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch

from ..machine import threads
from ..model.example import seeded_request
from . import packages
from .attention import choose_attention, fastest_backends
from .base import Applied, NotApplicable, has_unet
from .layout import channels_last
from .named import in_order, named, offload_blocks
from .prepared import prepare_once, prepared_denoisers
from .runtimes import Runtime, ShapedProgram, compile_whole, example_of, find_compiler, run_traced
from .timing import seconds_of

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

RUNTIMES = get_args(Runtime)


@dataclass(frozen=True)
class Faster:
    """What a loaded model runs on.

    Attributes:
        programs: one for each network; none where PyTorch computes them as it is.
        skipped: reasons of the parts that do not fit this model or machine.
    """

    programs: tuple[ShapedProgram, ...]
    skipped: tuple[str, ...]


def tune(pipe: ImageAnimationPipeline, *, attention: bool = True, compiled: bool = False) -> Applied:
    """Apply what every runtime stands on: the constants of a request, and on a GPU its layout and attention.

    Args:
        attention: whether attention is chosen by shape; not for a program that brings its own.
        compiled: whether attention is chosen for a program that is compiled.
    """
    applied = Applied()
    applied.fits(lambda: prepare_once(pipe))
    if pipe.device.type == "cuda" and has_unet(pipe):  # transformers have neither
        applied.fits(lambda: channels_last(pipe.network))  # before a program is loaded, which was compiled for it
        if attention:
            applied.fits(lambda: choose_attention(pipe.network, fastest_backends(pipe, compiled=compiled)))
    return applied


def save_memory(pipe: ImageAnimationPipeline, names: Sequence[str], device: str) -> list[str]:
    """Apply those of a package's changes that spare a device the whole network, and move the pipeline there.

    Returns:
        Reasons of those that do not fit.
    """
    applied, target = Applied(), torch.device(device)
    for name in in_order(names):
        if (change := named(name)).saves_memory:
            moves = name == "offload" and target.type != "cpu"
            apply = partial(offload_blocks, device=target) if moves else change.apply
            applied.fits(partial(apply, pipe))
    pipe.to(target)
    return applied.skipped


def speed_up(pipe: ImageAnimationPipeline, runtime: str, programs: Path, names: Sequence[str] = ()) -> Faster:
    """Change a pipeline as its package says.

    Args:
        programs: folder of those that were compiled ahead of time.
        names: changes of `pipeline.optimise.named`, but those of `save_memory`.

    Raises:
        ValueError: there is no such runtime or change.
        ModelError: a program is missing or damaged.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime: {runtime!r} is not one of {', '.join(RUNTIMES)}")
    chosen = [change for change in map(named, in_order(names)) if not change.saves_memory]
    without_compiler = ""
    if runtime == "compile":
        try:
            find_compiler()
        except NotApplicable as error:
            runtime, without_compiler = "eager", str(error)
    applied = tune(pipe, attention=runtime != "aot", compiled=runtime == "compile")
    if without_compiler:
        applied.skipped.append(without_compiler)
    for change in chosen:
        applied.fits(partial(change.apply, pipe))
    installed = applied.has("prepare") and runtime != "eager"
    if installed:  # all programs stand on what is prepared
        installed = applied.fits(
            {
                "torchscript": lambda: run_traced(pipe),
                "compile": lambda: compile_whole(pipe, example_of(pipe)),  # built in the warm-up
                "aot": lambda: packages.load(pipe, programs),
            }[runtime]
        )
        if runtime == "aot" and not installed and pipe.device.type == "cuda" and has_unet(pipe):
            applied.fits(lambda: choose_attention(pipe.network, fastest_backends(pipe)))
    runs = [one.run for one in prepared_denoisers(pipe)] if installed else []
    return Faster(tuple(run for run in runs if isinstance(run, ShapedProgram)), tuple(applied.skipped))


_WORTH_IT = 0.95
"""What needs a program or another number of threads has to take this share of the time of what needs none."""

_LONG_S = 4.0
"""A longer request, in seconds, is timed once, and gains nothing from fewer threads."""


@dataclass(frozen=True)
class RuntimeChoice:
    """A runtime, and the threads it computes on.

    Attributes:
        threads: threads of PyTorch on a CPU; None: as many as it takes by itself.
        request_s: least seconds of a whole request.
    """

    runtime: Runtime
    threads: int | None
    request_s: float

    def __str__(self) -> str:
        threads = {None: "", 1: ", 1 thread"}.get(self.threads, f", {self.threads} threads")
        return f"{self.runtime}{threads}"


def ways_to_run(pipe: ImageAnimationPipeline, requests: int = 3) -> list[RuntimeChoice]:
    """Time whole requests, eager and traced, on all threads and on one; the pipeline is left as it was.

    Small models spend much of a pass on Python, which a traced one does not, and on waking threads. Large
    ones gain from neither. Compiling, at start or ahead of time, takes minutes and is for the person to
    ask for.

    Args:
        requests: timed requests of each choice, after one that warms up; the fastest counts, since what other
            processes take is not the model's.

    Returns:
        The best first. Another than PyTorch's default is first only where it is clearly faster.
    """
    ways: list[RuntimeChoice] = []
    applied = tune(pipe)
    try:
        ways += _timed(pipe, "eager", requests)
        if applied.fits(lambda: run_traced(pipe)):
            ways += _timed(pipe, "torchscript", requests)
    finally:
        applied.undo()
    default = ways[0]
    best = min(ways, key=lambda way: way.request_s)
    chosen = best if best.request_s < _WORTH_IT * default.request_s else default
    return [chosen, *sorted((way for way in ways if way is not chosen), key=lambda way: way.request_s)]


def _timed(pipe: ImageAnimationPipeline, runtime: Runtime, requests: int) -> list[RuntimeChoice]:
    ways = [RuntimeChoice(runtime, None, _request_s(pipe, requests))]
    if pipe.device.type == "cpu" and torch.get_num_threads() > 1 and ways[0].request_s < _LONG_S:
        with threads(1):
            ways.append(RuntimeChoice(runtime, 1, _request_s(pipe, requests)))
    return ways


def _request_s(pipe: ImageAnimationPipeline, requests: int) -> float:
    (warm_up,) = seconds_of(lambda: seeded_request(pipe))
    return warm_up if warm_up > _LONG_S else min(seconds_of(lambda: seeded_request(pipe), requests))
