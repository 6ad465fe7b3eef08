"""What a stage hands on: figures, pictures and clips in its folder of the run, described by one JSON file."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import StillmotionError
from ..media.formats import Format
from ..media.video import Clip, encode
from ..writing import write_atomically

RESULT_FILE = "result.json"

Value = float | int | str | None


class Row(BaseModel):
    """One line of a table of figures.

    Attributes:
        name: what was measured, in words.
        value, unit: None stands for "does not apply".
        note: how, or against what.
        headline: one of the few figures that the report opens with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    value: Value
    unit: str = ""
    note: str = ""
    headline: bool = False

    @property
    def shown(self) -> str:
        """The value as people read it, with its unit."""
        if self.value is None:
            return "–"
        if isinstance(self.value, float):
            size = abs(self.value)
            digits = 1 if size >= 10 or size == 0 else 2 if size >= 1 else 3
            text = f"{self.value:,.{digits}f}"
        else:
            text = f"{self.value:,}" if isinstance(self.value, int) else self.value
        return f"{text} {self.unit}".strip()


class Figure(BaseModel):
    """A clip or a picture with its words.

    Attributes:
        clip, picture: file names in the stage's folder; a figure has one of them, or a clip with the
            picture that it was made from.
        wide: takes the page's whole width.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    caption: str = ""
    clip: str | None = None
    picture: str | None = None
    wide: bool = False


class StageResult(BaseModel):
    """All that the report and later stages know of a stage.

    Attributes:
        stage, title, summary: its name, a headline and a sentence or two.
        rows: for people.
        metrics: for programs.
        figures: in the order they are shown.
        model: tag of the model that it put into the store.
        reads: figures of earlier stages that it took, each as "stage name".
    """

    model_config = ConfigDict(extra="forbid")

    stage: str
    title: str
    summary: str = ""
    rows: list[Row] = []
    metrics: dict[str, object] = {}
    figures: list[Figure] = []
    model: str | None = None
    reads: list[str] = []


class StageFolder:
    """The folder `<run>/<stage>/` while its stage fills it.

    Args:
        run: the run's folder.
        stage: name of the stage, which is the name of its notebook.
    """

    def __init__(self, run: str | Path, stage: str, title: str) -> None:
        self.path = Path(run) / stage
        self.path.mkdir(parents=True, exist_ok=True)
        # What an earlier attempt left must not pass for a result of this one.
        (self.path / RESULT_FILE).unlink(missing_ok=True)
        self.result = StageResult(stage=stage, title=title)

    def read(self, stage: str, name: str) -> Any:
        """Return a figure of an earlier stage, which this one depends on from now on; None where there is none.

        Args:
            name: as `metric_of` has it.
        """
        if (key := f"{stage} {name}") not in self.result.reads:
            self.result.reads.append(key)
        return metric_of(self.path.parent, stage, name)

    def row(self, name: str, value: Value, unit: str = "", note: str = "", *, headline: bool = False) -> None:
        self.result.rows.append(Row(name=name, value=value, unit=unit, note=note, headline=headline))

    def clip(
        self,
        name: str,
        title: str,
        caption: str,
        clip: Clip,
        fps: int,
        picture: Image.Image | None = None,
        file_format: Format = "webm",
    ) -> Path:
        """Keep a clip `(frames, height, width, 3)`, uint8, with the picture it was made from."""
        return self.clip_file(name, title, caption, encode(clip, fps, file_format), file_format, picture)

    def clip_file(
        self, name: str, title: str, caption: str, data: bytes, suffix: str, picture: Image.Image | None = None
    ) -> Path:
        """Keep a clip that is a file already; a second one of a name gets a number."""
        taken, plain = {figure.clip for figure in self.result.figures}, name
        for number in itertools.count(2):
            if f"{name}.{suffix}" not in taken:
                break
            name = f"{plain}-{number}"
        path = self.path / f"{name}.{suffix}"
        path.write_bytes(data)
        if picture is not None:
            small = picture.convert("RGB")
            small.thumbnail((384, 384))
            small.save(self.path / f"{name}.png")
        self.result.figures.append(
            Figure(title=title, caption=caption, clip=path.name, picture=None if picture is None else f"{name}.png")
        )
        return path

    def picture(self, name: str, title: str, caption: str, picture: Image.Image) -> Path:
        path = self.path / f"{name}.png"
        picture.save(path)
        self.result.figures.append(Figure(title=title, caption=caption, picture=path.name, wide=True))
        return path

    def finish(self, summary: str, metrics: dict[str, object], model: str | None = None) -> StageResult:
        """Write the result; a stage without it counts as not done."""
        self.result.summary, self.result.metrics, self.result.model = summary, metrics, model
        write_atomically(self.path / RESULT_FILE, self.result.model_dump_json(indent=2) + "\n")
        return self.result


def metric_of(run: Path, stage: str, name: str) -> Any:
    """Return a figure of a stage; None where the stage or the figure is missing.

    Args:
        name: a key of its `metrics`; dots lead into what that holds.
    """
    if not (run / stage / RESULT_FILE).is_file():
        return None
    found: Any = read_result(run, stage).metrics
    for key in name.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def read_result(run: str | Path, stage: str) -> StageResult:
    """Return result of a finished stage."""
    path = Path(run) / stage / RESULT_FILE
    try:
        return StageResult.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise StillmotionError(f"{path}: missing; run {stage} first") from error
    except ValidationError as error:
        raise StillmotionError(f"{path}: damaged ({error.error_count()} errors); run {stage} again") from error
