"""Evidence of the model: the gates that it passed when it was packaged, or figures of one that is judged now."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from routing.console import tell
from routing.errors import InputError
from routing.files import read_json, write_atomically

from .evidence import Line, Mark, marked
from .settings import Model

AREA = "model"


def lines(settings: Model, base: Path, out: Path, run: Path | None = None) -> list[Line]:
    """What is known of the model.

    Args:
        settings: limits.
        base: folder that paths are seen from.
        out: folder for an evaluation.
        run: a run folder of the pipeline, instead of the newest.

    Raises:
        InputError: the run that was named cannot be used.
    """
    if run is not None:
        metrics = run / "metrics.json"
        content = _packaged(metrics)
        if content is None:
            raise InputError(f"--run: {metrics} is no result of a run that packaged a model with gates")
        return _gates(content, metrics)
    newest = None if settings.runs is None else _newest(base / settings.runs)
    return _evaluated(settings, base, out) if newest is None else _gates(*newest)


def _newest(runs: Path) -> tuple[dict[str, Any], Path] | None:
    """The newest run that packaged a model, and its file."""
    for metrics in sorted(runs.glob("*/metrics.json"), key=lambda path: path.parent.name, reverse=True):
        content = _packaged(metrics)
        if content is not None:
            return content, metrics
    return None


def _packaged(metrics: Path) -> dict[str, Any] | None:
    try:
        content: Any = read_json(metrics)
        found: dict[str, Any] = content["stages"]
        return found if found["03_distill"]["gates"] and found["04_package"]["tag"] else None
    except (InputError, KeyError, TypeError):
        return None


def _gates(stages: Mapping[str, Any], metrics: Path) -> list[Line]:
    tag, clips = stages["04_package"]["tag"], stages["03_distill"]["evaluation"]["clips"]
    found = [
        Line(
            AREA,
            f"gate {gate['name']} of {tag}",
            marked(bool(gate["passed"])),
            f"{gate['value']:g} for a limit of {gate['limit']:g}, {clips} clips",
            str(metrics),
        )
        for gate in stages["03_distill"]["gates"]
    ]
    difference = stages["04_package"].get("max_difference")
    if difference is not None:
        # One level of 255 is rounding.
        claim = f"{tag} answers as the model that was judged"
        found.append(Line(AREA, claim, marked(difference <= 1), f"{difference} of 255 apart at most", str(metrics)))
    return found


def _evaluated(settings: Model, base: Path, out: Path) -> list[Line]:
    """Judge a checkpoint, in a process of its own: load tests know nothing of models."""
    name = (
        "the newest model of the store, or the shipped teacher" if settings.checkpoint is None else settings.checkpoint
    )
    command = ["-m", "pipeline", "evaluate", "--json", "--clips", str(settings.clips)]
    if settings.checkpoint is not None:
        local = base / settings.checkpoint
        command += ["--model", str(local) if local.exists() else settings.checkpoint]
    shown = " ".join(["python", *command])
    tell(f"model: no run with gates here, so {name} is judged: {shown}")
    try:
        done = subprocess.run(  # noqa: S603  # the command is ours
            [sys.executable, *command], capture_output=True, timeout=settings.limit_s, check=False, env=dict(os.environ)
        )
    except subprocess.TimeoutExpired:
        found = f"not judged within {settings.limit_s:g} s"
        return [Line(AREA, "the model is good enough", Mark.NOT_SHOWN, found, shown)]
    if done.returncode != 0:
        why = (done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
        return [Line(AREA, "the model is good enough", Mark.NOT_SHOWN, why, shown)]
    path = out / "evaluation.json"
    write_atomically(path, done.stdout.decode())
    figures: dict[str, Any] = json.loads(done.stdout)
    judged = str(figures.get("model", name))
    return [_limit(judged, figures, key, least, path) for key, least in settings.at_least.items()]


def _limit(name: str, figures: Mapping[str, Any], key: str, least: float, path: Path) -> Line:
    value = figures.get(key)
    claim = f"{key} of {name} is {least:g} at least"
    if not isinstance(value, int | float):
        return Line(AREA, claim, Mark.NOT_SHOWN, "no such figure in the evaluation", str(path))
    return Line(AREA, claim, marked(value >= least), f"{value:g} on {figures['clips']} clips", str(path))
