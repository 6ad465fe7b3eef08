"""Where the time of one pass goes: kernels on a GPU, operations on a CPU, one by one and by class."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ..pages import page

# The first that fits decides. Fused kernels of the compiler bear the names of all that they fuse, and
# templates of attention and convolution those of the products and copies inside: so these come first.
_CLASSES = tuple(
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

_LISTED = 25


def class_of(name: str) -> str:
    """Return the class of a kernel or operation, judged by its name."""
    return next((kind for kind, pattern in _CLASSES if pattern.search(name)), "other")


def profile_pass(run: Callable[[], object], device: torch.device, title: str) -> tuple[float, str]:
    """Profile a pass that is warm already. The profiler slows it down: no time of it is a measurement of the pass.

    Returns:
        Milliseconds of all kernels added up, without the gaps between them, and a page of two tables in Markdown.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities, acc_events=True) as profiler:
        run()
        if on_gpu:
            torch.cuda.synchronize(device)
    kernels: list[tuple[str, int, float]] = []  # name, calls, milliseconds of its own
    for event in profiler.key_averages():
        on_device = (event.device_type == DeviceType.CUDA) == on_gpu
        if on_device and not getattr(event, "is_user_annotation", False) and not _NOT_KERNELS.search(event.key):
            time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            kernels.append((event.key, event.count, time_us / 1000))
    classes: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for name, calls, ms in kernels:
        classes[class_of(name)] = classes[class_of(name)][0] + calls, classes[class_of(name)][1] + ms
    total = sum(ms for _, _, ms in kernels)

    named = [(f"`{name[:110]}`".replace("|", "\\|") + f", {class_of(name)}", n, ms) for name, n, ms in kernels]
    tables = {"class": [(name, *figures) for name, figures in classes.items()], f"kernel, of {len(kernels)}": named}
    longest = {first: sorted(rows, key=lambda row: -row[2])[:_LISTED] for first, rows in tables.items()}
    return round(total, 4), page("profile.md.j2", title=title, total=total, tables=longest)
