"""Runs a preset: its notebooks in order, in one folder, with progress, a report, and resume."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..console import about, tell
from ..errors import ModelError, StageSkipped, StillmotionError, system_error
from ..serve.sources import check_source
from ..writing import held, write_atomically
from .notebooks import NotebookError, check_parameters, execute, parameters_of, to_page, typed
from .results import StageResult, read_result
from .settings import Parameter, Preset, UsageError, load_preset
from .state import STATE_FILE, RunState, StageState, artefacts_of, reads_of, stage_digest

LATEST = "latest"

# The runner gives these itself, to every notebook that has them.
_OWN_PARAMETERS = ("run_folder", "teacher")


_ENDED = ("done", "skipped")
_NAME = re.compile(r"(?!latest$)[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Stages:
    """Which stages of a preset are run.

    Attributes:
        only: name of the one; empty: from the first on.
        until: name of the last; empty: to the end.
    """

    only: str = ""
    until: str = ""

    def of(self, preset: Preset) -> range:
        """Return their places in a preset.

        Raises:
            UsageError: it has no stage of that name; the text lists those that it has.
        """
        names = [stage.notebook for stage in preset.stages]
        for option, name in (("--only", self.only), ("--until", self.until)):
            if name and name not in names:
                raise UsageError(f"{option}: there is no stage {name!r}; the preset has {', '.join(names)}")
        if self.only:
            return range(names.index(self.only), names.index(self.only) + 1)
        return range(names.index(self.until) + 1 if self.until else len(names))


class RunError(StillmotionError):
    """A stage failed. Two lines: what and why; where to look and how to go on."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: with notebooks, pictures, clips, `metrics.json` and `report.html`.
        model: tag of the model that the last stage put into the store, if one did.
    """

    folder: Path
    report: Path
    model: str | None
    metrics: dict[str, object]


def start(
    preset: str,
    teacher: str = "",
    runs: Path = Path("runs"),
    parameters: Mapping[str, Parameter] | None = None,
    name: str = "",
    stages: Stages | None = None,
) -> Path:
    """Make the folder of a new run, after checking all that can be checked before any work.

    Args:
        teacher: folder or hub id; empty takes the shipped one.
        parameters: given to each notebook that has them; they win over the preset's. Text is read by the type
            of the notebook's own value.
        name: of the run's folder; empty: the time and the preset. A run of that name which was started with the same
            preset, teacher and parameters is gone on with, so that each step of a workflow can be the same command.
        stages: which of them will be run, for checks.

    Raises:
        UsageError: an unknown preset, stage or parameter, or a run of that name that was started in another way.
        StillmotionError: a teacher that is not there, a stage without those before it, or a folder that cannot be made.
    """
    settings = load_preset(preset)
    stages = stages or Stages()
    chosen = stages.of(settings)
    given = typed(parameters or {}, [parameters_of(settings.notebook(stage)) for stage in settings.stages])
    _refuse_unknown(settings, given)
    check_source(teacher)
    # Made absolute, since kernels have their own idea of "here"; a hub id stays as it is.
    teacher = str(Path(teacher).resolve()) if teacher and Path(teacher).is_dir() else teacher
    now = datetime.now().astimezone()
    state = RunState(
        # A file of one's own is found again from anywhere.
        preset=str(Path(preset).resolve()) if Path(preset).suffix else preset,
        teacher=teacher,
        parameters=given,
        command=_command_line(),
        created=now.isoformat(timespec="seconds"),
        stages=[StageState(name=stage.notebook) for stage in settings.stages],
    )
    if name and not _NAME.fullmatch(name):
        raise UsageError(f"--name: {name!r} is no name of a folder: letters, digits, dots, dashes and underscores")
    if name and (runs / name / STATE_FILE).is_file():
        _refuse_other(runs / name, state)
        return (runs / name).resolve()
    if chosen.start:
        first, wanted = settings.stages[0].notebook, settings.stages[chosen.start].notebook
        raise StillmotionError(
            f"{wanted}: a new run has nothing for it to go on from; run {first} first (--until {wanted} runs all that "
            f"it needs), or name a run that has it: --resume RUN --only {wanted}"
        )
    folder = _new_folder(runs, name, f"{now:%Y%m%d-%H%M%S}-{Path(preset).stem}")
    state.save(folder)
    _point_latest(folder)
    return folder


def _new_folder(runs: Path, name: str, otherwise: str) -> Path:
    """Make `runs/name`, or `runs/otherwise` with a number where that is taken."""
    folder = runs.resolve() / (name or otherwise)
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for attempt in range(2, 100):
            try:
                folder.mkdir(exist_ok=bool(name))
                break
            except FileExistsError:
                folder = runs.resolve() / f"{otherwise}-{attempt}"
    except OSError as error:
        raise StillmotionError(f"{runs}: cannot hold a run ({error.strerror or error})") from error
    return folder


def _refuse_other(folder: Path, wanted: RunState) -> None:
    """Refuse to go on with a run that was started in another way."""
    before = RunState.read(folder)
    for name in ("preset", "teacher", "parameters"):
        was, now = getattr(before, name), getattr(wanted, name)
        if was != now:
            raise UsageError(f"--name: {folder.name} was started with {name} {was!r}, and not {now!r}")


def go_on(folder: Path, stages: Stages | None = None) -> Run:
    """Run what is not done yet, or whose inputs have changed, and write the report.

    Args:
        stages: which of them; None: all.

    Raises:
        RunError: a stage failed; what is done stays, and the report tells so far.
        UsageError: there is no stage of that name.
        StillmotionError: another process is at work on this run, or a stage needs one that is not done.
        KeyboardInterrupt: the run was interrupted and can be resumed; the text says how.
    """
    with held(folder, "run"):
        return _go_on(folder, stages or Stages())


def _go_on(folder: Path, stages: Stages) -> Run:
    state = RunState.read(folder)
    settings = load_preset(state.preset)
    _refuse_unknown(settings, state.parameters)
    kept = {stage.name: stage for stage in state.stages}
    state.stages = [kept.get(stage.notebook, StageState(name=stage.notebook)) for stage in settings.stages]
    chosen = stages.of(settings)
    for k in range(chosen.start):
        asked, _ = _asked(state, k, settings)
        if not _is_done(folder, state, k, asked):
            own, wanted = state.stages[k], settings.stages[chosen.start].notebook
            why = "its inputs or files have changed" if own.status in _ENDED else f"it is {own.status}"
            raise StillmotionError(
                f"{wanted}: needs {own.name}, and {why}; run it first: "
                f"python -m pipeline run --resume {folder} --only {own.name}"
            )
    tell(f"run {folder}")
    failed: NotebookError | None = None
    for k in chosen:
        failed = _stage(folder, state, k, settings)
        if failed is not None:
            break
    run = summarise(folder)
    if failed is not None:
        # Two lines: what and why; where to look and how to go on.
        raise RunError(
            f"{failed.notebook.stem}: {failed.reason}\n"
            f"see {failed.notebook}; go on with: python -m pipeline run --resume {folder}"
        )
    return run


def _introduction(state: RunState, k: int, settings: Preset) -> str:
    """What a stage does and how long it takes: its share of what the preset expects, at the pace of the run so far."""
    stage = settings.stages[k]
    done = [
        (own.seconds, each.expected_s)
        for own, each in zip(state.stages[:k], settings.stages[:k], strict=True)
        if own.status == "done" and each.expected_s is not None
    ]
    pace = sum(took for took, _ in done) / sum(expected for _, expected in done) if done else 1.0
    time_it_takes = "" if stage.expected_s is None else f" ({about(stage.expected_s * pace)})"
    return f"{stage.about or 'started'}{time_it_takes}"


def _stage(folder: Path, state: RunState, k: int, settings: Preset) -> NotebookError | None:
    """Run one stage unless it is done; the failure, if it failed."""
    own, stage = state.stages[k], settings.stages[k]
    label = f"[{k + 1}/{len(settings.stages)}] {stage.notebook}"
    notebook, before = settings.notebook(stage), state.stages[:k]
    digest, given = _asked(state, k, settings)
    if _is_done(folder, state, k, digest):
        how = f"skipped before: {own.error}" if own.status == "skipped" else f"done before ({own.seconds:.0f} s), kept"
        tell(f"{label}  {how}")
        return None
    tell(f"{label}  {_introduction(state, k, settings)}")
    runner: dict[str, Parameter] = {"run_folder": str(folder), "teacher": state.teacher}
    known, began = parameters_of(notebook), time.monotonic()
    own.status, own.digest, own.reads, own.artefacts, own.error = "running", digest, {}, {}, ""
    state.save(folder)
    output = folder / f"{stage.notebook}.ipynb"

    def on_news(line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        tell(f"      {minutes}:{seconds:02d}  {line}")

    try:
        values = {**given, **{name: value for name, value in runner.items() if name in known}}
        execute(notebook, output, values, on_news)
        own.reads = reads_of(folder, read_result(folder, stage.notebook).reads, before)
        own.status, own.artefacts = "done", artefacts_of(folder, stage.notebook)
    except StageSkipped as skipped:
        own.status, own.error, own.reads = "skipped", str(skipped), reads_of(folder, (), before)
    except NotebookError as error:
        own.status, own.error = "failed", error.reason
        return error
    except StillmotionError as error:
        own.status, own.error = "failed", str(error)
        return NotebookError(str(error), output)
    except OSError as error:
        own.status, own.error = "failed", system_error(error)
        return NotebookError(own.error, output)
    except KeyboardInterrupt:
        own.status = "interrupted"
        raise KeyboardInterrupt(f"go on with: python -m pipeline run --resume {folder}") from None
    finally:
        own.seconds = round(time.monotonic() - began, 2)
        state.save(folder)
        reason = f": {own.error}" if own.status == "skipped" else f" after {own.seconds:.0f} s"
        tell(f"{label}  {own.status}{reason}")
    return None


def _asked(state: RunState, k: int, settings: Preset) -> tuple[str, dict[str, Parameter]]:
    """Return the digest of what a stage is asked to do, and the parameters that it is given."""
    stage = settings.stages[k]
    notebook = settings.notebook(stage)
    known = parameters_of(notebook)
    given = {**stage.parameters, **{name: value for name, value in state.parameters.items() if name in known}}
    return stage_digest(notebook, given, state.teacher), given


def _is_done(folder: Path, state: RunState, k: int, digest: str) -> bool:
    """Return whether a stage has done, or found nothing to do of, what it is asked to do now."""
    own = state.stages[k]
    if own.status not in _ENDED or own.digest != digest or own.reads != reads_of(folder, own.reads, state.stages[:k]):
        return False
    return own.status == "skipped" or _intact(folder, own)


def _intact(folder: Path, stage: StageState) -> bool:
    """Return whether all that a stage made is still there as it made it, its model in the store included."""
    if artefacts_of(folder, stage.name) != stage.artefacts:
        return False
    result = read_result(folder, stage.name)
    if result.model is None:
        return True
    from ..serve.store import resolve, verify

    try:
        verify(resolve(result.model)[1])
    except ModelError:
        return False
    return True


def summarise(folder: Path) -> Run:
    """Write `metrics.json`, the notebooks' pages and `report.html` from what is done."""
    from .report import write_report

    state = RunState.read(folder)
    results: list[StageResult] = []
    for stage in state.stages:
        notebook = folder / f"{stage.name}.ipynb"
        if notebook.is_file():
            with contextlib.suppress(ValueError):  # a full disk can leave half of a notebook
                to_page(notebook, notebook.with_suffix(".html"))
        if stage.status == "done":
            results.append(read_result(folder, stage.name))
    metrics: dict[str, object] = {
        "preset": state.preset,
        "command": state.command,
        "created": state.created,
        "seconds": {stage.name: stage.seconds for stage in state.stages},
        "stages": {result.stage: result.metrics for result in results},
    }
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    models = [result.model for result in results if result.model]
    return Run(folder, write_report(folder), models[-1] if models else None, metrics)


def find_run(name_or_folder: str, runs: Path) -> Path:
    """Return folder of an earlier run, by its path or its name below `runs`; "latest" is the newest."""
    for folder in (Path(name_or_folder), runs / name_or_folder):
        if (folder / "state.json").is_file():
            return folder.resolve()
    raise StillmotionError(f"{name_or_folder}: no such run, neither here nor in {runs}")


def _refuse_unknown(preset: Preset, given: Mapping[str, Parameter]) -> None:
    every: dict[str, str] = {}
    for stage in preset.stages:
        notebook = preset.notebook(stage)
        known = parameters_of(notebook)
        check_parameters(notebook, stage.parameters)
        check_parameters(notebook, {name: value for name, value in given.items() if name in known})
        every |= dict.fromkeys(known, stage.notebook)
    for name in given:
        if name in _OWN_PARAMETERS:
            raise UsageError(f"parameter {name}: the run sets it; use --runs and --teacher")
        if name not in every:
            choice = ", ".join(sorted(set(every) - set(_OWN_PARAMETERS)))
            raise UsageError(f"parameter {name}: no notebook of this preset has it; they have {choice}")


def _command_line() -> str:
    """Return what a person would type to repeat this."""
    return shlex.join(["python", "-m", "pipeline", *sys.argv[1:]])


def _point_latest(folder: Path) -> None:
    """`runs/latest` leads to the newest run, where the file system has links."""
    link, partial = folder.parent / LATEST, folder.parent / f".{LATEST}.{os.getpid()}"
    try:
        partial.symlink_to(folder.name)
        partial.replace(link)
    except OSError:
        partial.unlink(missing_ok=True)
