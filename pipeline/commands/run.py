"""The commands `run` and `demo`: the notebooks of a preset in order, by themselves or with what they make served."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .options import add_parameters, existing, utf8_text

_TEACHER = "folder in diffusers format or hub id (default: the shipped teacher)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of `run`."""
    parser.add_argument("--preset", help="a name, or a YAML file of your own (default: tiny)")
    parser.add_argument("--teacher", help=_TEACHER)
    _add_runs(parser)
    parser.add_argument("--resume", metavar="RUN", help="go on with a run: its folder, its name, or latest")
    text = "name of the run's folder; the same command again goes on there (default: the time and the preset)"
    parser.add_argument("--name", default="", help=text)
    which = parser.add_mutually_exclusive_group()
    text = "run this stage alone, such as 03_distill; those before it have to be done"
    which.add_argument("--only", default="", metavar="STAGE", help=text)
    which.add_argument("--until", default="", metavar="STAGE", help="run the stages up to this one")
    add_parameters(parser, "a parameter of the notebooks; may be repeated")


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of `demo`."""
    parser.add_argument("--image", type=Path, help="a picture of your own; give --prompt too")
    parser.add_argument("--prompt", type=utf8_text, help="its caption")
    _add_runs(parser)
    parser.add_argument("--preset", default="tiny", metavar="NAME_OR_FILE", help="of the notebooks (default: tiny)")
    parser.add_argument("--teacher", help=_TEACHER)
    parser.add_argument("--port", type=int, default=0, help="of the server while it shows itself (default: a free one)")
    add_parameters(parser, "a parameter of the notebooks; may be repeated")


def _add_runs(parser: argparse.ArgumentParser) -> None:
    text = "where runs are kept (default: runs)"
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help=text)


def run_preset(options: argparse.Namespace) -> dict[str, Any]:
    """Run the notebooks of a new run, or what is left of an old one."""
    from ..runs.run import Stages, find_run, go_on, start

    stages = Stages(options.only, options.until)
    if options.resume:
        if options.preset or options.teacher or options.name or options.parameters:
            options.usage_error(
                "--resume goes on with what the run was started with; leave out --preset, --teacher, --name, -p"
            )
        folder = find_run(options.resume, options.runs)
    else:
        given = dict(options.parameters)
        preset, teacher = options.preset or "tiny", options.teacher or ""
        folder = start(preset, teacher, options.runs, given, options.name, stages)
    run = go_on(folder, stages)
    return {"run": str(run.folder), "report": str(run.report), "model": run.model, "metrics": run.metrics}


def run_lines(result: dict[str, Any]) -> list[str]:
    """Return what `run` prints for people."""
    lines = [f"report  {result['report']}"]
    return [*lines, f"model   {result['model']}"] if result["model"] else lines


def show_demo(options: argparse.Namespace) -> dict[str, Any]:
    """Show the whole chain."""
    from .demo import demo

    if (options.image is None) != (options.prompt is None):
        options.usage_error("--image and --prompt go together")
    own = None if options.image is None else (existing(options.image), options.prompt)
    return asdict(
        demo(own, options.runs, options.teacher or "", options.port, dict(options.parameters), options.preset)
    )


def demo_lines(result: dict[str, Any]) -> list[str]:
    """Return what `demo` prints for people."""
    return [
        f"report  {result['report']}",
        *(f"clip    {path}" for path in result["clips"]),
        f"model   {result['model']}",
        f"next    {result['serve']}",
    ]
