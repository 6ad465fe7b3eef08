"""The command line: `python -m pipeline <command>`.

Exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted. Heavy imports are inside the commands, so
that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import tell, without_nan, write_result
from ..errors import StillmotionError, system_error
from ..lock import held
from ..runs.settings import UsageError
from . import animate as animate_command
from . import distill as distill_command
from . import evaluate as evaluate_command
from . import package as package_command
from .options import (
    add_parameters,
    existing,
    parameters,
    positive,
    settings_with_parameters,
    utf8_text,
)

if TYPE_CHECKING:
    from ..train.teacher import TeacherSettings
    from ..train.vae import VaeSettings

Command = Callable[[argparse.Namespace], dict[str, Any]]
"""Does the work and returns what `--json` prints."""


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
        lines = [json.dumps(without_nan(result), indent=2, allow_nan=False)] if options.json else options.lines(result)
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


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(
        name: str, command: Command, lines: Callable[[dict[str, Any]], list[str]], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=command, lines=lines)
        added.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        return added

    run = add("run", run_preset, _run_lines, "run the notebooks of a preset, in order")
    run.add_argument("--preset", help="a name, or a YAML file of your own (default: tiny)")
    run.add_argument("--teacher", help="folder in diffusers format or hub id (default: the shipped teacher)")
    run.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are kept (default: runs)"
    )
    run.add_argument("--resume", metavar="RUN", help="go on with a run: its folder, its name, or latest")
    add_parameters(run, "a parameter of the notebooks; may be repeated")

    animate = add("animate", animate_command.animate_picture, lambda r: [r["out"]], "animate one picture")
    animate_command.add_arguments(animate)

    evaluate = add(
        "evaluate",
        evaluate_command.evaluate_model,
        evaluate_command.lines,
        "judge a model on held-out generated clips, by itself or beside its teacher",
    )
    evaluate_command.add_arguments(evaluate)

    package = add(
        "package", package_command.package_checkpoint, lambda r: [r["tag"]], "put a checkpoint into the BentoML store"
    )
    package.add_argument(
        "--checkpoint", "--model", required=True, metavar="FOLDER_OR_ID", dest="checkpoint", help="in diffusers format"
    )
    package_command.add_arguments(package)

    bench = add("bench", bench_model, _bench_lines, "measure each optimisation, in one run")
    bench.add_argument("--preset", choices=("tiny", "i2vgen-xl"), default="tiny", help="default: tiny")
    bench.add_argument(
        "--model", metavar="FOLDER_OR_ID", help="checkpoint (default: the shipped teacher, or random weights)"
    )
    bench.add_argument("--rungs", metavar="NAMES", help="some of the rungs, separated by commas (default: all)")
    bench.add_argument("--repeats", type=positive, default=3, metavar="N", help="timed requests a rung (default: 3)")
    bench.add_argument("--strict", action="store_true", help="stop where an optimisation does not apply")
    _add_pass(bench)
    bench.add_argument("--out", type=Path, metavar="DIR", help="write JSON, Markdown and plot or profiles there")

    train = add("train", train_embedded, lambda r: [r["out"]], "train the shipped teacher on generated clips")
    train.add_argument(
        "part", nargs="?", choices=("vae", "teacher", "refine"), help="one part alone (default: all, in order)"
    )
    train.add_argument("--out", type=Path, default=Path("training"), metavar="DIR", help="default: training")
    train.add_argument("--start", type=Path, metavar="DIR", help="what `refine` starts from; default: OUT/teacher")
    train.add_argument("--device", help="such as cpu or cuda (default: the GPU where there is one)")
    train.add_argument("--minutes", type=float, help="stop each part after this time; a later call goes on")
    add_parameters(train, "a training setting; may be repeated")

    text = "train a student that needs few steps and one pass a step"
    distill_command.add_arguments(add("distill", distill_command.distill_model, distill_command.lines, text))

    demo = add("demo", show_demo, _demo_lines, "from notebooks to animations served over HTTP")
    demo.add_argument("--image", type=Path, help="a picture of your own; give --prompt too")
    demo.add_argument("--prompt", type=utf8_text, help="its caption")
    demo.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are kept (default: runs)"
    )
    demo.add_argument("--preset", default="tiny", metavar="NAME_OR_FILE", help="of the notebooks (default: tiny)")
    demo.add_argument("--teacher", help="folder in diffusers format or hub id (default: the shipped teacher)")
    demo.add_argument("--port", type=int, default=0, help="of the server while it shows itself (default: a free one)")
    add_parameters(demo, "a parameter of the notebooks; may be repeated")
    return parser


def _add_pass(parser: argparse.ArgumentParser) -> None:
    parts = ("request", "pass", "distill")
    text = "whole requests (default), one U-Net pass, or one update of a student"
    parser.add_argument("--part", choices=parts, default=parts[0], help=text)
    parser.add_argument(
        "--variants", metavar="NAMES", help="of a pass or an update, separated by commas (default: all)"
    )
    parser.add_argument("--passes", type=positive, default=10, metavar="N", help="timed passes (default: 10)")
    parser.add_argument("--branches", type=positive, default=3, metavar="N", help="of a pass (default: 3)")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, help="of a pass (default: bfloat16 on a GPU, else float32)")


# ------------------------------------------------------------------ commands


def run_preset(options: argparse.Namespace) -> dict[str, Any]:
    """`run`: a new run, or what is left of an old one."""
    from ..runs.run import find_run, go_on, start

    if options.resume:
        if options.preset or options.teacher or options.parameters:
            options.usage_error(
                "--resume goes on with what the run was started with; leave out --preset, --teacher, -p"
            )
        folder = find_run(options.resume, options.runs)
    else:
        folder = start(options.preset or "tiny", options.teacher or "", options.runs, parameters(options))
    run = go_on(folder)
    return {"run": str(run.folder), "report": str(run.report), "model": run.model, "metrics": run.metrics}


def _run_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"report  {result['report']}"]
    return [*lines, f"model   {result['model']}"] if result["model"] else lines


def bench_model(options: argparse.Namespace) -> dict[str, Any]:
    """`bench`: the ladder of optimisations, rung by rung."""
    if options.model:
        from ..serve.sources import check_source

        check_source(options.model)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is said before the work
    from ..quiet import quiet_libraries

    quiet_libraries()
    import tempfile

    rungs, variants = (
        None if names is None else [name.strip() for name in names.split(",")]
        for names in (options.rungs, options.variants)
    )
    if options.part != "request":
        from ..bench.distill_step import run_distill
        from ..bench.pass_run import run_pass

        given = (variants, options.dtype, options.passes, options.branches, options.out)
        try:
            if options.part == "distill":
                return run_distill(options.preset, options.model, variants, options.dtype, options.out, tell)
            return run_pass(options.preset, options.model, *given, tell=tell).to_dict()
        except ValueError as error:
            options.usage_error(f"--{error}")
    from ..bench import bench, open_preset, write

    pipe, name = open_preset(options.preset, options.model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = bench(
                pipe, name, options.preset, Path(folder), rungs, options.repeats, strict=options.strict, tell=tell
            )
        except ValueError as error:
            options.usage_error(f"--{error}")
    if options.out is not None:
        for path in write(result, options.out):
            tell(f"written: {path}")
    return result.to_dict()


def _bench_lines(result: dict[str, Any]) -> list[str]:
    if "variants" in result:
        from ..bench import pass_report

        return pass_report.table(result["variants"])
    if "updates" in result:
        from ..bench.distill_step import distill_lines

        return distill_lines(result["updates"])
    from ..bench import table

    return table(result["rungs"])


def train_embedded(options: argparse.Namespace) -> dict[str, Any]:
    """`train`: the shipped weights, from nothing but a seed."""
    from ..quiet import quiet_libraries

    quiet_libraries()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    from ..serve.engine import default_device
    from ..train.teacher import TeacherSettings
    from ..train.vae import VaeSettings

    is_vae = options.part == "vae"
    vae = settings_with_parameters(options, VaeSettings(), of="vae" if is_vae else None)
    teacher = settings_with_parameters(options, TeacherSettings(), of=None if is_vae else options.part)
    parts = (options.part,) if options.part else ("vae", "teacher", "refine")
    device = options.device or default_device()
    with held(options.out, "training"):
        return _train_parts(parts, options, vae, teacher, device)


def _train_parts(
    parts: Sequence[str], options: argparse.Namespace, vae: VaeSettings, teacher: TeacherSettings, device: str
) -> dict[str, Any]:
    from ..train.teacher import train_teacher
    from ..train.vae import train_vae

    result: dict[str, Any] = {"out": str(options.out)}
    if "vae" in parts:
        result["vae_psnr_db"] = train_vae(vae, options.out, options.minutes, device=device)
    if "teacher" in parts:
        _must_be_there(options.out / "vae", "train the autoencoder first: python -m pipeline train vae")
        train_teacher(teacher, options.out, options.minutes, device=device)
        result["teacher"] = str(options.out / "teacher")
    if "refine" in parts:
        start = options.start or options.out / "teacher"
        _must_be_there(start / "unet", "train the teacher first: python -m pipeline train teacher")
        train_teacher(teacher, options.out, options.minutes, start=start, device=device)
        result["teacher"] = str(options.out / "refined")
    return result


def _must_be_there(folder: Path, what_to_do: str) -> None:
    if not folder.is_dir():
        raise StillmotionError(f"{folder}: missing; {what_to_do}")


def show_demo(options: argparse.Namespace) -> dict[str, Any]:
    """`demo`: the whole chain."""
    from .demo import demo

    if (options.image is None) != (options.prompt is None):
        options.usage_error("--image and --prompt go together")
    own = None if options.image is None else (existing(options.image), options.prompt)
    found = demo(own, options.runs, options.teacher or "", options.port, parameters(options), options.preset)
    return asdict(found)


def _demo_lines(result: dict[str, Any]) -> list[str]:
    return [
        f"report  {result['report']}",
        *(f"clip    {path}" for path in result["clips"]),
        f"model   {result['model']}",
        f"next    {result['serve']}",
    ]


# ------------------------------------------------------------------ helpers
