"""Which runtime, on how many threads, is the fastest here: by measurement, among what is built in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .example import seeded_request
from .packaged import tune
from .runtimes import Runtime, run_traced
from .threads import threads
from .timing import seconds_of

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

# What needs a program or another number of threads has to be this much faster than what needs none.
_WORTH_IT = 0.95

# Seconds. A longer request is timed once, and gains nothing from fewer threads.
_LONG_S = 4.0


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
