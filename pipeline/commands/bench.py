"""`python -m pipeline bench`: what each optimisation gains on this machine."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from ..console import tell
from .options import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--preset", choices=("tiny", "i2vgen-xl", "wan-ti2v-5b", "wan-a14b"), default="tiny", help="default: tiny"
    )
    parser.add_argument(
        "--model", metavar="FOLDER_OR_ID", help="checkpoint (default: the shipped teacher, or random weights)"
    )
    parts = ("request", "pass", "decode", "distill")
    text = "whole requests (default), one pass of the network, latents to frames, or one update of a student"
    parser.add_argument("--part", choices=parts, default=parts[0], help=text)
    text = "some of the rungs, separated by commas, and attention:BACKEND (default: those that fit the device)"
    parser.add_argument("--rungs", "--variants", metavar="NAMES", help=text)
    parser.add_argument("--repeats", type=positive, default=3, metavar="N", help="timed turns of a rung (default: 3)")
    parser.add_argument("--strict", action="store_true", help="stop where an optimisation does not apply")
    parser.add_argument("--passes", type=positive, default=10, metavar="N", help="passes timed together (default: 10)")
    parser.add_argument("--branches", type=positive, metavar="N", help="guidance branches of a pass (default: its own)")
    dtypes = ("float32", "bfloat16", "float16")
    text = "precision of a pass or of the teacher of an update (default: bfloat16 on a GPU, else float32)"
    parser.add_argument("--dtype", choices=dtypes, help=text)
    parser.add_argument("--out", type=Path, metavar="DIR", help="write JSON, Markdown and plot or profiles there")


def bench_model(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the ladder of optimisations, rung by rung."""
    if options.model:
        from ..serve.sources import check_source

        check_source(options.model)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is said before the work
    from ..quiet import quiet_libraries

    quiet_libraries()
    from ..bench import bench, open_preset, write
    from ..optimise.precision import dtype_of

    names = None if options.rungs is None else [name.strip() for name in options.rungs.split(",")]
    pipe, model = open_preset(options.preset, options.model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = bench(
                pipe,
                model,
                options.preset,
                Path(folder),
                names,
                options.repeats,
                strict=options.strict,
                tell=tell,
                part=options.part,
                dtype=None if options.dtype is None else dtype_of(options.dtype),
                calls=options.passes,
                branches=options.branches,
                profiled=options.out is not None,
                save=lambda result: None if options.out is None else write(result, options.out),
            )
        except ValueError as error:
            if not str(error).startswith(("rungs: ", "optimisations: ")):
                raise
            options.usage_error(f"--{error}")
    if options.out is not None:
        tell(f"written: {options.out}")
    return result.to_dict()


def lines(result: dict[str, Any]) -> list[str]:
    """Return a table for people."""
    from ..bench import table

    return table(result["rungs"])
