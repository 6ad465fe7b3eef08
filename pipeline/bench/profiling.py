"""Where the time of one pass goes: kernels on a GPU, operations on a CPU, one by one and by class."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .timing import wait

# The first that fits decides. Fused kernels of the compiler bear the names of all that they fuse, and
# templates of attention and convolution those of the products and copies inside: so these come first.
_CLASSES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("norm and elementwise", r"^triton_(poi|red|per|spl|for)_|^cpp_fused"),
        ("attention", r"flash|fmha|attention|sdpa|softmax"),
        ("copies and layout", r"nchwTo|nhwcTo|ncdhwTo|ndhwcTo|memcpy|memset"),
        ("convolution", r"conv(?!ert)|implicit|fprop|dgrad|winograd|cudnn"),
        ("matmul", r"gemm|gemv|nvjet|cutlass|cublas|matmul|splitk|addmm|\bb?mm\b|_b?mm|linear"),
        ("copies and layout", r"copy|CatArray|::cat\b|clone|transpose|permute|index|gather|upsample|contiguous"),
        ("norm and elementwise", r"norm|elementwise|reduce|moments|silu|gelu|triton|::(add|mul|div|sub|sum|mean)_?\b"),
    )
)

_NOT_KERNELS = re.compile(r"^(## |Torch-Compiled|ProfilerStep|CompiledFunction|cuda[A-Z]|cu[A-Z])")


@dataclass(frozen=True)
class Kernel:
    """A kernel, or an operation of a CPU.

    Attributes:
        kind: class that its name puts it into.
        count, time_ms: of one pass; an operation's time is its own, without those it calls.
        share: of the time of all.
    """

    name: str
    kind: str
    count: float
    time_ms: float
    share: float


@dataclass(frozen=True)
class PassProfile:
    """Where the time of one pass goes.

    Attributes:
        where: "cuda" or "cpu".
        time_ms: of all kernels of one pass, added up. Gaps between them are not in it.
        kinds: by class, `name` and `kind` being the same; most time first.
        kernels: those that take most time, most first.
        others: how many kernels are not listed.
    """

    where: str
    time_ms: float
    kinds: tuple[Kernel, ...]
    kernels: tuple[Kernel, ...]
    others: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def kind_of(name: str) -> str:
    """Class of a kernel or operation, judged by its name."""
    return next((kind for kind, pattern in _CLASSES if pattern.search(name)), "other")


def profile_pass(run: Callable[[], object], device: torch.device, top: int = 25, passes: int = 1) -> PassProfile:
    """Profile a pass that is warm already. The profiler slows it down: no time of it is a measurement of the pass.

    Args:
        top: how many kernels to list.
        passes: figures are of one, the mean of these.
    """
    on_gpu = device.type == "cuda"
    wait(device)
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(passes):
            run()
        wait(device)
    rows: list[tuple[str, float, float]] = []  # name, count, ms
    for event in profiler.key_averages():
        if (event.device_type == DeviceType.CUDA) != on_gpu or getattr(event, "is_user_annotation", False):
            continue
        if _NOT_KERNELS.search(event.key):
            continue
        time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        rows.append((event.key, event.count / passes, time_us / 1000 / passes))
    return _summarise(rows, device.type, top)


def _summarise(rows: Sequence[tuple[str, float, float]], where: str, top: int) -> PassProfile:
    total = sum(time_ms for _, _, time_ms in rows) or 1.0
    kinds: dict[str, tuple[float, float]] = {}
    for name, count, time_ms in rows:
        counted, spent = kinds.get(kind_of(name), (0.0, 0.0))
        kinds[kind_of(name)] = counted + count, spent + time_ms

    def kernel(name: str, kind: str, count: float, time_ms: float) -> Kernel:
        return Kernel(name, kind, round(count, 1), round(time_ms, 4), round(time_ms / total, 4))

    listed = sorted(rows, key=lambda row: -row[2])
    return PassProfile(
        where=where,
        time_ms=round(total, 4),
        kinds=tuple(kernel(k, k, *figures) for k, figures in sorted(kinds.items(), key=lambda item: -item[1][1])),
        kernels=tuple(kernel(name, kind_of(name), count, time_ms) for name, count, time_ms in listed[:top]),
        others=max(0, len(listed) - top),
    )


def markdown(found: PassProfile, title: str) -> str:
    """Two tables: classes, and kernels."""
    what = "kernel" if found.where == "cuda" else "operation"
    lines = [
        f"# {title}",
        "",
        f"One pass: {found.time_ms:.2f} ms in {what}s, under the profiler and without gaps; times are in `pass.md`.",
        "",
        "| class | calls | ms | share |",
        "|---|--:|--:|--:|",
        *(f"| {k.name} | {k.count:.0f} | {k.time_ms:.3f} | {100 * k.share:.1f} % |" for k in found.kinds),
        "",
        f"| {what} | class | calls | ms | share |",
        "|---|---|--:|--:|--:|",
    ]
    for k in found.kernels:
        name = k.name.replace("|", "\\|")
        name = name if len(name) <= 110 else f"{name[:107]}..."
        lines.append(f"| `{name}` | {k.kind} | {k.count:.0f} | {k.time_ms:.3f} | {100 * k.share:.1f} % |")
    if found.others:
        lines += ["", f"{found.others} more take less."]
    return "\n".join([*lines, ""])
