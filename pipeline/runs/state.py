"""What is done in a run, and how it is known that nothing has changed since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import StillmotionError
from ..machine import sha256_of
from ..writing import write_atomically
from .results import metric_of
from .settings import Parameter

STATE_FILE = "state.json"

# Larger files are known by their size and time: hashing a published checkpoint would take longer
# than some stages do.
_LARGEST_HASHED = 64 * 2**20


class StageState(BaseModel):
    """One stage of a run.

    Attributes:
        digest: SHA-256 of what it was asked to do: notebook, parameters, teacher.
        reads: SHA-256 of what it took from each stage before it: of a figure, by "stage name", or of all that the stage
            made, where the notebook does not say what it takes.
        artefacts: SHA-256 of each file that it wrote, by path in the run's folder.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    status: Literal["waiting", "running", "done", "failed", "interrupted", "skipped"] = "waiting"
    digest: str = ""
    reads: dict[str, str] = {}
    seconds: float = 0.0
    artefacts: dict[str, str] = {}
    error: str = ""


class RunState(BaseModel):
    """A run, as `state.json` keeps it.

    Attributes:
        preset, teacher, parameters: as asked for on the command line.
        command: the line that made the run.
    """

    model_config = ConfigDict(extra="forbid")

    preset: str
    teacher: str
    parameters: dict[str, Parameter]
    command: str
    created: str
    stages: list[StageState]

    def save(self, run: Path) -> None:
        write_atomically(run / STATE_FILE, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, run: Path) -> RunState:
        """Return state of an earlier run."""
        path = run / STATE_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StillmotionError(f"{run}: not the folder of a run (no {STATE_FILE})") from error
        except ValidationError as error:
            raise StillmotionError(f"{path}: damaged; start a new run") from error


def stage_digest(notebook: Path, parameters: Mapping[str, Parameter], teacher: str) -> str:
    """Return the digest of what a stage is asked to do, with the content of models that a parameter names."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    content = {
        "source": [["".join(cell["source"]), cell["cell_type"]] for cell in cells],
        "parameters": {name: _model_digest(value) for name, value in parameters.items()},
        "teacher": folder_digest(Path(teacher)) if teacher and Path(teacher).is_dir() else teacher,
    }
    return _digest(content)


def _model_digest(value: Parameter) -> Parameter:
    """Return the digest of a model's folder, and any other value as it is."""
    is_model = isinstance(value, str) and (Path(value) / "model_index.json").is_file()
    return folder_digest(Path(str(value))) if is_model else value


def reads_of(run: Path, keys: Iterable[str], before: Sequence[StageState]) -> dict[str, str]:
    """Return the digest of what a stage takes from those before it, as it is now.

    Args:
        keys: figures, each as "stage name", or names of stages; none: all stages before it.
    """
    stages = {stage.name: [stage.digest, stage.artefacts] for stage in before}
    found: dict[str, str] = {}
    for key in keys or stages:
        stage, _, name = key.partition(" ")
        value: object = metric_of(run, stage, name) if name else stages.get(stage)
        folder = Path(value) if isinstance(value, str) and Path(value).is_dir() else None
        found[key] = _digest(value) if folder is None else folder_digest(folder)
    return found


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def artefacts_of(run: Path, stage: str) -> dict[str, str]:
    """Return the digest of each file that a stage has written, the executed notebook among them."""
    paths = [run / f"{stage}.ipynb", *sorted((run / stage).rglob("*"))]
    return {path.relative_to(run).as_posix(): file_digest(path) for path in paths if path.is_file()}


def folder_digest(folder: Path) -> str:
    """Return the digest of a folder's files and their names."""
    return _digest(
        [
            [path.relative_to(folder).as_posix(), file_digest(path)]
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
    )


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or its size and time where it is large."""
    about = path.stat()
    if about.st_size > _LARGEST_HASHED:
        return f"size {about.st_size} time {about.st_mtime_ns}"
    return sha256_of(path)
