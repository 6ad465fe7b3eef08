"""The sample pictures in assets/, each with a caption."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ..errors import StillmotionError

SAMPLES_FILE = Path(__file__).resolve().parents[2] / "assets" / "samples.yaml"


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


def read_samples(file: str | Path | None = None, count: int | None = None) -> list[Sample]:
    """Samples of a YAML file: a list of `picture` (a path beside the file), `prompt` and `seed`.

    Args:
        file: None takes the project's own.
        count: at most so many.

    Raises:
        StillmotionError: the file cannot be read, or names a picture that is not there.
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
