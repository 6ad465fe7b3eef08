"""Seconds by the clock of `torch.utils.benchmark`, which waits for the accelerator before it looks."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch.utils.benchmark import timer as clock


def seconds_of(run: Callable[[], object], repeats: int = 1, number: int = 1, warm_up: int = 0) -> list[float]:
    """Return the seconds of one call, measured `repeats` times.

    Args:
        number: calls of one measurement, whose mean it is. The processor runs ahead of the accelerator between them, as
            it does in the denoising loop.
        warm_up: calls before the first measurement.
    """
    calls = timeit.Timer(run, timer=clock)
    calls.timeit(warm_up)
    return [seconds / number for seconds in calls.repeat(repeats, number)]


class Account:
    """Adds up where the time of requests goes: a listener for `pipeline.spans.listen`.

    Attributes:
        parts: seconds of each part of a request, by its name, in the order in which they came.
    """

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, name: str, about: Mapping[str, int | float | str]) -> Iterator[None]:
        began = clock()
        yield
        self.add(name, clock() - began)

    def add(self, name: str, seconds: float) -> None:
        """Add one part."""
        self.parts.setdefault(name, []).append(seconds)
