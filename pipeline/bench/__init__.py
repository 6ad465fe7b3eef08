"""`python -m pipeline bench`: each optimisation measured in one run.

- `presets`: the models that are measured.
- `measure`: the rungs of `pipeline.optimise.ladder` in turn, and diffusers' own pipeline beside them.
- `report`: JSON, Markdown and plot.
"""

from .measure import BenchResult, RungResult, bench
from .presets import open_preset
from .report import table, write

__all__ = ["BenchResult", "RungResult", "bench", "open_preset", "table", "write"]
