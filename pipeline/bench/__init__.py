"""`python -m pipeline bench`: each optimisation measured in one run, beside diffusers' own pipeline.

- `ladder`: the rungs, which are changes of a pipeline; of a whole request, of one pass, of one update of a student.
- `measure`: the rungs in turn. `result`: what it found. `report`: tables and files.
- `presets`: the models that are measured.
- `baseline`: what a model takes as it came, for notebooks.
"""

from .ladder import Measure, Rung
from .measure import bench
from .presets import open_preset
from .report import table, write
from .result import BenchResult, RungResult

__all__ = ["BenchResult", "Measure", "Rung", "RungResult", "bench", "open_preset", "table", "write"]
