"""`report.html`: a run on one page that needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..machine import machine, versions
from ..writing import write_atomically
from .display import data_uri, is_video
from .results import RESULT_FILE, Figure, Row, StageResult, read_result
from .settings import load_preset
from .state import RunState, StageState

REPORT_FILE = "report.html"
DEMO_STAGE = "demo"
"""Folder of what was animated over HTTP, told like a stage."""

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Media:
    """A figure with its files as text that stands in the page."""

    title: str
    caption: str
    clip: str | None
    is_video: bool
    picture: str | None


@dataclass(frozen=True)
class Section:
    """A stage on the page."""

    name: str
    title: str
    summary: str
    rows: list[Row]
    cards: list[Media]
    sheets: list[Media]
    status: str
    seconds: float
    error: str
    links: list[tuple[str, str]]


def write_report(run: Path) -> Path:
    """Write the report of a run from what it has so far.

    Args:
        run: its folder, with `state.json` and the stages' results.

    Raises:
        StillmotionError: not a run's folder, or a result is damaged.
    """
    state = RunState.read(run)
    sections = [_section(run, stage) for stage in state.stages]
    if (run / DEMO_STAGE / RESULT_FILE).is_file():
        seconds = read_result(run, DEMO_STAGE).metrics.get("seconds", 0.0)
        sections.append(_section(run, StageState(name=DEMO_STAGE, status="done", seconds=float(str(seconds)))))
    # The clips that came out of the server are what a person came for; before there are any, the first stage's.
    opening = next((section for section in reversed(sections) if section.cards), None)
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=load_preset(state.preset).title,
        run=run.name,
        created=datetime.fromisoformat(state.created).strftime("%d %B %Y, %H:%M"),
        seconds=sum(section.seconds for section in sections),
        hero=[] if opening is None else opening.cards,
        hero_section="" if opening is None else opening.name,
        headlines=[row for section in sections for row in section.rows if row.headline],
        sections=sections,
        finished=all(stage.status in {"done", "skipped"} for stage in state.stages),
        command=state.command,
        machine=machine(),
        versions=versions(),
    )
    write_atomically(run / REPORT_FILE, page)
    return run / REPORT_FILE


def _section(run: Path, stage: StageState) -> Section:
    done = stage.status == "done"
    result = read_result(run, stage.name) if done else StageResult(stage=stage.name, title=stage.name)
    links = [
        (f"{stage.name}{suffix}", text)
        for suffix, text in ((".html", "read the notebook"), (".ipynb", "its .ipynb"))
        if (run / f"{stage.name}{suffix}").is_file()
    ]
    media = [(figure, _media(run / stage.name, figure)) for figure in result.figures]
    return Section(
        name=stage.name,
        title=result.title,
        summary=result.summary,
        rows=result.rows,
        cards=[shown for figure, shown in media if not figure.wide],
        sheets=[shown for figure, shown in media if figure.wide],
        status=stage.status,
        seconds=stage.seconds,
        error=stage.error,
        links=links,
    )


def _media(folder: Path, figure: Figure) -> Media:
    clip = None if figure.clip is None else folder / figure.clip
    return Media(
        title=figure.title,
        caption=figure.caption,
        clip=None if clip is None else data_uri(clip),
        is_video=clip is not None and is_video(clip),
        picture=None if figure.picture is None else data_uri(folder / figure.picture),
    )
