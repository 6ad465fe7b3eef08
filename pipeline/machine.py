"""What every stage asks of the machine: its name and versions, its memory, and how things on it are called."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch

_PACKAGES = ("stillmotion", "torch", "diffusers", "transformers", "bentoml", "papermill", "numpy")


def machine() -> dict[str, str]:
    """Processor, memory, accelerator and system, as people write them."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": f"{processor()}, {cores} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Return Python and the packages that matter; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_memory_mb() -> float:
    """Most memory that this process has held so far, in MB: of the GPU where there is one, else of the process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


def default_device() -> str:
    """Return the accelerator, where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let PyTorch compute on so many threads while the block runs; None leaves it alone."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a precision as files and options write it: "bfloat16" of `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def processor() -> str:
    """Return name of the processor, as its maker writes it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


class PeakMemory:
    """Most memory held while the block runs, in MB: of the GPU where there is one, else of the process.

    Attributes:
        peak_mb: after the block; None where the system does not tell (a process's peak is reset
            through /proc, which only Linux has).
    """

    def __init__(self) -> None:
        self.peak_mb: float | None = None

    def __enter__(self) -> Self:
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return self
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._resets = True
        except OSError:
            self._resets = False
        return self

    def __exit__(self, *_exception: object) -> None:
        import torch

        if torch.cuda.is_available():
            self.peak_mb = torch.cuda.max_memory_allocated() / 1e6
        elif self._resets:
            for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith("VmHWM:"):
                    self.peak_mb = int(line.split()[1]) * 1024 / 1e6
