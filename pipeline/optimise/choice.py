"""Which runtime is the fastest here, by measurement, among those that are built in seconds."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from PIL import Image

from .base import NotApplicable
from .prepared import prepare_once
from .runtimes import Runtime, example_of, install, trace
from .tune import tune

if TYPE_CHECKING:
    from ..animation import ImageAnimationPipeline

# A runtime that needs a program has to be this much faster than the one that needs none.
_WORTH_IT = 0.95


def fastest_runtime(pipe: ImageAnimationPipeline, requests: int = 3) -> tuple[Runtime, dict[Runtime, float]]:
    """Time whole requests, eager and traced; the pipeline is left as it was.

    Small models spend much of a pass on Python, and a traced one does not. Large ones do not gain, and
    stay eager. Compiling, at start or ahead of time, takes minutes and is for the person to ask for.

    Args:
        requests: timed of each, after one that warms up.

    Returns:
        The faster runtime, and the median seconds of a request with each that could be measured.
    """
    changes = [prepare_once(pipe)]
    try:
        changes += tune(pipe, compiled=False)
        timed: dict[Runtime, float] = {"eager": _request_s(pipe, requests)}
        try:
            example = example_of(pipe)
            changes.append(install(pipe, trace(pipe, example), example, "torchscript", "traced"))
            timed["torchscript"] = _request_s(pipe, requests)
        except NotApplicable:
            return "eager", timed
    finally:
        for change in reversed(changes):
            change.undo()
    return ("torchscript" if timed["torchscript"] < _WORTH_IT * timed["eager"] else "eager"), timed


def _request_s(pipe: ImageAnimationPipeline, requests: int) -> float:
    height, width = pipe.default_size
    grey = Image.new("RGB", (width, height), (127, 127, 127))
    seconds = []
    for _ in range(1 + requests):
        began = time.perf_counter()
        pipe(grey, "a red circle moves right", output_type="np")
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
