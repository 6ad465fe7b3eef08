"""The arrivals of a run alone, as a file: what a simulated fleet and a real one can both be given."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from routing.files import write_atomically

from .build import build
from .events import NEVER, next_arrival
from .scenario import TRACE_COLUMNS, Experiment


def arrivals(experiment: Experiment, seed: int) -> list[tuple[float, str]]:
    """(time in s, region) of each job, in order of time."""
    state, names = build(experiment, seed), experiment.fleet.names
    found = []
    while (source := next_arrival(state, NEVER)) >= 0:
        found.append((float(state.scalars["now"][0]), names[source]))
    return found


def write_arrivals(experiment: Experiment, seed: int, path: Path) -> None:
    """Write them, to the microsecond.

    Raises:
        RoutingError: the file cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(TRACE_COLUMNS)
    rows.writerows((f"{time:.6f}", region) for time, region in arrivals(experiment, seed))
    write_atomically(path, text.getvalue())
