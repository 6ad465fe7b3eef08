"""Seconds by the clock of `torch.utils.benchmark`, which waits for the accelerator before it looks."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.utils.benchmark import timer

clock = timer
"""Seconds since some time in the past, once the accelerator has done what it was given."""


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


@torch.no_grad()
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of a large square matrix product, the best of several.

    Float32 is measured as PyTorch has it by default, without TF32.
    """
    side = 8192 if device.type == "cuda" else 512
    # Random numbers: products of zeros need less power, and a GPU then keeps a higher clock.
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    return float(f"{2 * side**3 / min(seconds_of(lambda: torch.mm(a, b, out=product), 10, warm_up=2)):.4g}")
