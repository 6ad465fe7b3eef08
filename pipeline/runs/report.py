"""`report.html`: a run on one page that needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..machine import machine, versions
from ..pages import page
from ..writing import write_atomically
from .display import data_uri, is_video
from .results import RESULT_FILE, Figure, StageResult, read_result
from .settings import load_preset
from .state import RunState, StageState

REPORT_FILE = "report.html"
DEMO_STAGE = "demo"
"""Folder of what was animated over HTTP, told like a stage."""


@dataclass(frozen=True)
class Section:
    """A stage on the page: how it went, what it found, and the folder of its clips and pictures."""

    state: StageState
    result: StageResult
    folder: Path

    @property
    def cards(self) -> list[Figure]:
        """Figures that are shown beside each other."""
        return [figure for figure in self.result.figures if not figure.wide]

    @property
    def links(self) -> list[tuple[str, str]]:
        """Pages of the stage's notebook, and what to call them."""
        texts = {".html": "read the notebook", ".ipynb": "its .ipynb"}
        files = {self.folder.with_name(self.folder.name + suffix): text for suffix, text in texts.items()}
        return [(file.name, text) for file, text in files.items() if file.is_file()]


def write_report(run: Path) -> Path:
    """Write the report of a run from what it has so far.

    Args:
        run: its folder, with `state.json` and the stages' results.
    """
    state = RunState.read(run)
    sections = [_section(run, stage) for stage in state.stages]
    if (run / DEMO_STAGE / RESULT_FILE).is_file():
        seconds = read_result(run, DEMO_STAGE).metrics.get("seconds", 0.0)
        sections.append(_section(run, StageState(name=DEMO_STAGE, status="done", seconds=float(str(seconds)))))
    text = page(
        "report.html.j2",
        title=load_preset(state.preset).title,
        run=run.name,
        created=datetime.fromisoformat(state.created).strftime("%d %B %Y, %H:%M"),
        seconds=sum(section.state.seconds for section in sections),
        # The clips that came out of the server are what a person came for; before there are any, the first stage's.
        hero=next((section for section in reversed(sections) if section.cards), None),
        headlines=[row for section in sections for row in section.result.rows if row.headline],
        sections=sections,
        finished=all(stage.status in {"done", "skipped"} for stage in state.stages),
        command=state.command,
        machine=machine(),
        versions=versions(),
        data_uri=data_uri,
        is_video=is_video,
    )
    write_atomically(run / REPORT_FILE, text)
    return run / REPORT_FILE


def _section(run: Path, stage: StageState) -> Section:
    done = stage.status == "done"
    result = read_result(run, stage.name) if done else StageResult(stage=stage.name, title=stage.name)
    return Section(stage, result, run / stage.name)
