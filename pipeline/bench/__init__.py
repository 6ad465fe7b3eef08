"""`python -m pipeline bench`: each optimisation measured in one run.

- `presets`: the models that are measured.
- `measure`: the rungs of `pipeline.bench.ladder` in turn, and diffusers' own pipeline beside them; `requests`: what
  each of them computes.
- `report`: JSON, Markdown and plot of these.
- `unet_pass`, `variants`: one U-Net pass alone, ours and diffusers', eager and compiled; `pass_report` writes them.
- `profiling`: the kernels of a pass. `timing`: clocks, and the peak of a device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .presets import open_preset

if TYPE_CHECKING:
    from .measure import BenchResult, RungResult, bench
    from .report import table, write

__all__ = ["BenchResult", "RungResult", "bench", "open_preset", "table", "write"]


def __getattr__(name: str) -> Any:
    # A pass is measured on machines that lack what whole requests need (the encoders of videos).
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".report" if name in ("table", "write") else ".measure", __name__), name)
