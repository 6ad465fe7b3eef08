"""Which runtime, on how many threads, is the fastest here: by measurement, among what is built in seconds."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from .base import NotApplicable
from .prepared import prepare_once
from .runtimes import Runtime, example_of, install, trace
from .threads import threads
from .tune import tune

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

# What needs a program or another number of threads has to be this much faster than what needs none.
_WORTH_IT = 0.95

# Seconds. A longer request is timed once, and gains nothing from fewer threads.
_LONG_S = 4.0


@dataclass(frozen=True)
class Way:
    """A way to run a model.

    Attributes:
        threads: of PyTorch on a CPU; None: as many as it takes by itself.
        request_s: least seconds of a whole request.
    """

    runtime: Runtime
    threads: int | None
    request_s: float

    def __str__(self) -> str:
        threads = {None: "", 1: ", 1 thread"}.get(self.threads, f", {self.threads} threads")
        return f"{self.runtime}{threads}"


def ways_to_run(pipe: ImageAnimationPipeline, requests: int = 3) -> list[Way]:
    """Time whole requests, eager and traced, on all threads and on one; the pipeline is left as it was.

    Small models spend much of a pass on Python, which a traced one does not, and on waking threads. Large
    ones gain from neither. Compiling, at start or ahead of time, takes minutes and is for the person to
    ask for.

    Args:
        requests: timed of each, after one that warms up; the fastest counts, since what other processes
            take is not the model's.

    Returns:
        The best first. Another than PyTorch's default is first only where it is clearly faster.
    """
    ways: list[Way] = []
    changes = [prepare_once(pipe)]
    try:
        with contextlib.suppress(NotApplicable):
            changes += tune(pipe, compiled=False)
        ways += _timed(pipe, "eager", requests)
        try:
            example = example_of(pipe)
            changes.append(install(pipe, trace(pipe, example), example, "torchscript", "traced"))
            ways += _timed(pipe, "torchscript", requests)
        except NotApplicable:
            pass  # eager it is
    finally:
        for change in reversed(changes):
            change.undo()
    default = ways[0]
    best = min(ways, key=lambda way: way.request_s)
    chosen = best if best.request_s < _WORTH_IT * default.request_s else default
    return [chosen, *sorted((way for way in ways if way is not chosen), key=lambda way: way.request_s)]


def _timed(pipe: ImageAnimationPipeline, runtime: Runtime, requests: int) -> list[Way]:
    ways = [Way(runtime, None, _request_s(pipe, requests))]
    if pipe.device.type == "cpu" and torch.get_num_threads() > 1 and ways[0].request_s < _LONG_S:
        with threads(1):
            ways.append(Way(runtime, 1, _request_s(pipe, requests)))
    return ways


def _request_s(pipe: ImageAnimationPipeline, requests: int) -> float:
    height, width = pipe.default_size
    grey = Image.new("RGB", (width, height), (127, 127, 127))
    seconds: list[float] = []
    for number in range(1 + requests):
        began = time.perf_counter()
        pipe(grey, "a red circle moves right", output_type="np")
        taken = time.perf_counter() - began
        if number or taken > _LONG_S:
            seconds.append(taken)
        if taken > _LONG_S:
            break
    return min(seconds)
