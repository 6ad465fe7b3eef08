"""The command line: `python -m pipeline <command>`.

Exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted. Heavy imports are inside the commands, so
that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pydantic_core import to_jsonable_python

from ..console import tell, write_result
from ..errors import StillmotionError, system_error
from ..runs.settings import UsageError
from . import animate, bench, distill, evaluate, package, run, train

Command = Callable[[argparse.Namespace], dict[str, Any]]
"""Does the work and returns what `--json` prints."""

Lines = Callable[[dict[str, Any]], list[str]]
"""What is printed of it for people."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    options.usage_error = parser.error
    options.failure = None  # set by a command whose result is printed though it failed
    command: Command = options.command
    # Telemetry is a choice of the person who runs a tool, and the store needs none.
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "1")
    # Threads of PyTorch that wait in a loop for long take the cores from other processes: where there are
    # some, a step takes six times as long. Read when PyTorch is loaded; notebooks and the server inherit it.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        # Libraries print to stdout as they like; there it would spoil the document.
        with contextlib.redirect_stdout(sys.stderr):
            result = command(options)
        lines = [_document(result)] if options.json else options.lines(result)
        write_result("".join(f"{line}\n" for line in lines))
    except UsageError as error:
        tell(f"error: {error}")
        return 2
    except StillmotionError as error:
        tell(f"error: {error}")
        return 1
    except OSError as error:
        # A full disk, a name that is too long, a folder that cannot be written: the system says it in a few words.
        tell(f"error: {system_error(error)}")
        return 1
    except KeyboardInterrupt as error:
        tell(f"interrupted; {error}" if str(error) else "interrupted")
        return 130
    if options.failure is not None:
        tell(f"error: {options.failure}")
        return 1
    return 0


def _document(result: dict[str, Any]) -> str:
    # JSON has no NaN and no infinity, and most readers refuse them: they are null.
    return json.dumps(to_jsonable_python(result, inf_nan_mode="null"), indent=2, allow_nan=False)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(
        name: str,
        text: str,
        arguments: Callable[[argparse.ArgumentParser], None],
        command: Command,
        lines: Lines = lambda result: [result["out"]],
    ) -> None:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=command, lines=lines)
        added.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        arguments(added)

    text = "run the notebooks of a preset, in order"
    add("run", text, run.add_arguments, run.run_preset, run.run_lines)
    add("animate", "animate one picture", animate.add_arguments, animate.animate_picture)
    text = "judge a model on held-out generated clips, by itself or beside its teacher"
    add("evaluate", text, evaluate.add_arguments, evaluate.evaluate_model, evaluate.lines)
    text = "put a checkpoint into the BentoML store"
    add("package", text, package.add_arguments, package.package_checkpoint, lambda result: [result["tag"]])
    add("bench", "measure each optimisation, in one run", bench.add_arguments, bench.bench_model, bench.lines)
    text = "train the shipped teacher on generated clips"
    add("train", text, train.add_arguments, train.train_embedded)
    text = "train a student that needs few steps and one pass a step"
    add("distill", text, distill.add_arguments, distill.distill_model, distill.lines)
    text = "from notebooks to animations served over HTTP"
    add("demo", text, run.add_demo_arguments, run.show_demo, run.demo_lines)
    return parser
