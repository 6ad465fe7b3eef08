"""Clocks of the benchmarks, and what a device can do at best."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


def wait(device: torch.device) -> None:
    """GPU work is asynchronous; a clock must not stop before it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_calls(run: Callable[[], object], device: torch.device, calls: int) -> list[float]:
    """Milliseconds of each of several calls, one after the other.

    A GPU's own events mark beginning and end, and the processor is not made to wait between calls: it
    runs ahead as it does in the denoising loop, and what it is too slow for counts.
    """
    wait(device)
    if device.type != "cuda":
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - began))
        return times
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)]
    for begin, end in marks:
        begin.record()
        run()
        end.record()
    wait(device)
    return [begin.elapsed_time(end) for begin, end in marks]


@dataclass(frozen=True)
class Peak:
    """What a device reaches on work that suits it best.

    Attributes:
        tflops_per_s: of a large square matrix product, multiplications and additions.
        copy_gb_per_s: of a large copy within the device's memory, bytes read and bytes written.
    """

    tflops_per_s: float
    copy_gb_per_s: float


@torch.no_grad()
def device_peak(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> Peak:
    """Best of several matrix products, of 8192 x 8192 on a GPU, and of several copies.

    Float32 is measured as PyTorch has it by default, without TF32.
    """
    on_gpu = device.type == "cuda"
    side, copied = (8192, 2**30) if on_gpu else (1024, 2**25)
    # Random numbers: products of zeros need less power, and a GPU then keeps a higher clock.
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    multiply_ms = min(time_calls(lambda: torch.mm(a, b, out=product), device, repeats + 2)[2:])
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_ms = min(time_calls(lambda: target.copy_(source), device, repeats + 2)[2:])
    # Digits that count, and not decimals: other figures are divided by these, which a machine that stalls makes small.
    tflops_per_s, copy_gb_per_s = 2 * side**3 / multiply_ms / 1e9, 2 * copied / copy_ms / 1e6
    return Peak(float(f"{tflops_per_s:.4g}"), float(f"{copy_gb_per_s:.4g}"))
