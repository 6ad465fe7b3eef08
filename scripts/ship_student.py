# ruff: noqa: INP001  # a script, no package
"""Puts the student of a run into the repository: pipeline/embedded/student, a packaged model as a server loads it.

    python -m pipeline run --preset student
    python scripts/ship_student.py runs/latest

Its weights are kept in half precision, since a repository is no place for large files, and are computed with in
single precision, since few CPUs are fast in half.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch

from pipeline.errors import StillmotionError
from pipeline.optimise.packaged import ways_to_run
from pipeline.packaging.card import model_card
from pipeline.packaging.package import KEPT_FIGURES, max_difference
from pipeline.quiet import quiet_libraries
from pipeline.runs.results import read_result
from pipeline.serve.engine import Animator
from pipeline.serve.sources import EMBEDDED_STUDENT, open_checkpoint
from pipeline.serve.store import write_package

# Rounding weights to half precision may move a colour by so many steps of 255.
_MOST_DIFFERENCE = 4


def ship(run: Path, out: Path = EMBEDDED_STUDENT) -> Animator:
    """Package the student of a run's 03_distill into a folder; gives it as a server loads it.

    Raises:
        StillmotionError: the run has no student, or half precision changes its frames visibly.
    """
    result = read_result(run, "03_distill")
    source = open_checkpoint(str(result.metrics["source"]), device="cpu")
    figures = dict(result.metrics["evaluation"])  # type: ignore[call-overload]  # an object of figures
    way = ways_to_run(source.pipe)[0]
    kept = {name: figures[name] for name in KEPT_FIGURES if figures.get(name) is not None}
    info = source.info.changed(
        teacher="embedded student",
        metrics=kept,
        runtime=way.runtime,
        threads=way.threads,
        precision="float32",
    )
    half = open_checkpoint(str(result.metrics["source"]), device="cpu").pipe.to(torch.float16)
    shutil.rmtree(out, ignore_errors=True)
    write_package(half, out, info, model_card(info, figures, embedded=True))
    shipped = Animator.load(out, device="cpu")
    difference = max_difference(source, shipped)
    if difference > _MOST_DIFFERENCE:
        raise StillmotionError(f"{out}: half precision changes frames by up to {difference} of 255")
    sys.stdout.write(f"{out}: {way}, frames within {difference} of 255 of the student's\n")
    return shipped


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    quiet_libraries()
    ship(parser.parse_args().run)
