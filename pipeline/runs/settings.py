"""Presets: which notebooks a run goes through, and with what parameters; and the sample pictures that they animate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import StillmotionError
from ..reading import read_yaml
from ..serve.manifest import ModelInfo
from ..serve.request import AnimationRequest

PRESETS = Path(__file__).parent.parent / "presets"
NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SAMPLES_FILE = Path(__file__).resolve().parents[2] / "assets" / "samples.yaml"

Parameter = bool | int | float | str | None


_NO_VALUE = ("null", "none", "None", "~")


def parse_value(text: str, kind: Any) -> Any:
    """Read what somebody has typed by the type that is wanted, and not by the looks of it.

    YAML alone would take `no` for false, `1:30` for 90 and `#x` for nothing, also where text is wanted.

    Args:
        kind: a type; `X | None` takes "null" for None; a tuple is written as a YAML list.

    Raises:
        ValueError: the text is no such value.
    """
    if get_origin(kind) in (Union, UnionType):
        if NoneType in get_args(kind) and text in _NO_VALUE:
            return None
        kind = next(one for one in get_args(kind) if one is not NoneType)
    if kind is str:
        return text
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    if (get_origin(kind) or kind) is tuple:
        try:
            return adapter.validate_python(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ValueError(f"{text!r} is not a list") from error
    return adapter.validate_strings(text)


class UsageError(StillmotionError):
    """Something was asked for that there is not; a command exits with 2."""


class StageSettings(BaseModel):
    """One notebook of a run.

    Attributes:
        notebook: its name without folder and suffix; also the stage's name.
        parameters: for its tagged cell; what is left out keeps the notebook's own value.
        about: what it does, for the line that says that it has started.
        expected_s: seconds that it takes on two CPU cores that do nothing else; None where nobody knows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    notebook: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    parameters: dict[str, Parameter] = {}
    about: str = ""
    expected_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class Preset(BaseModel):
    """A run from checkpoint to packaged model.

    Attributes:
        title: a line for the report.
        stages: in order; each finds the results of those before it in the run's folder.
        notebooks: folder of the notebooks, as seen from the preset's file; left out: the project's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    stages: tuple[StageSettings, ...] = Field(min_length=1)
    notebooks: Path = NOTEBOOKS

    def notebook(self, stage: StageSettings) -> Path:
        """Return where the notebook of a stage is."""
        return self.notebooks / f"{stage.notebook}.ipynb"


def preset_names() -> list[str]:
    """Return presets that ship with the project."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml") if path.stem != "gates")  # which are no run


def load_preset(name_or_file: str) -> Preset:
    """Read a preset that ships with the project, or one of your own from a YAML file.

    Raises:
        UsageError: it is not there.
        StillmotionError: a key or value is wrong; the text names the key.
    """
    path = Path(name_or_file) if name_or_file.endswith((".yaml", ".yml")) else PRESETS / f"{name_or_file}.yaml"
    try:
        preset = read_yaml(path, Preset)
    except FileNotFoundError as error:
        known = ", ".join(preset_names())
        raise UsageError(f"preset {name_or_file}: not found; known are {known}, or give a .yaml file") from error
    return preset.model_copy(update={"notebooks": (path.parent / preset.notebooks).resolve()})


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    picture: str
    prompt: str
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """A picture to animate, with its prompt and seed."""

    path: Path
    prompt: str
    seed: int

    @property
    def name(self) -> str:
        return self.path.stem

    def request(self, info: ModelInfo) -> AnimationRequest:
        """Return what to ask a model for; one that reads no prompt is given none."""
        return AnimationRequest(self.prompt if info.takes_prompt else "", seed=self.seed)


def read_samples(file: str | Path | None = None, count: int | None = None) -> list[Sample]:
    """Return samples of a YAML file: a list of `picture` (a path beside the file), `prompt` and `seed`.

    Args:
        file: None takes the project's own.
        count: at most so many.
    """
    path = Path(file) if file else SAMPLES_FILE
    try:
        entries = TypeAdapter(list[_Entry]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise StillmotionError(f"{path}: not a list of samples ({str(error).splitlines()[0]})") from error
    samples = [Sample(path.parent / entry.picture, entry.prompt, entry.seed) for entry in entries[:count]]
    for sample in samples:
        if not sample.path.is_file():
            raise StillmotionError(f"{path}: {sample.path.name} is not there")
    return samples
