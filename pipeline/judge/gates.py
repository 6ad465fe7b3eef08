"""Gates: what a student has to reach beside its teacher, or the pipeline stops before packaging.

All are judged on point estimates over the clips of one comparison. Student and teacher animate the same
pictures from the same noise, so that most of what makes a clip hard cancels out; what is left of chance is
still large with few clips. With 64 of them one clip is 1.6 % of the motion accuracy: a limit of 0.98 of the
teacher's then lets it lose one clip, and with fewer than 50 clips none. Results and errors say the number.

What a student saves is judged by what can be counted: passes, operations, bytes. Seconds depend on what else the
machine does; they are reported beside the gates and judge nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ..console import tell
from ..errors import StillmotionError
from ..reading import read_yaml

if TYPE_CHECKING:
    from .evaluate import Comparison

DEFAULT_GATES = Path(__file__).parents[1] / "presets" / "gates.yaml"
"""Shipped with the project."""

_AT_MOST = {"ground_truth_loss_db", "weights_ratio"}  # every other limit is a least value

# Limits of earlier releases that are read and not judged, with what to say of them.
_RETIRED = {"speedup": "seconds are no longer judged; passes_ratio and operations_ratio count what is saved"}


class Limits(BaseModel):
    """Limits of a student; None does not judge.

    Attributes:
        motion_of_teacher: least motion accuracy, as a share of the teacher's.
        psnr_to_teacher_db: least PSNR to the teacher's clips.
        psnr_above_undistilled_db: how much that has to lie above what the undistilled teacher reaches
            with as many passes, at least.
        ground_truth_loss_db: PSNR to the true clips that may be lost against the teacher's, at most.
        passes_ratio: U-Net passes of the teacher's clip, as a multiple of the student's, at least.
        operations_ratio: the same for the floating-point operations of those passes, at least.
        weights_ratio: bytes of the student's U-Net, as a multiple of the teacher's, at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    motion_of_teacher: float | None = Field(default=None, ge=0)
    psnr_to_teacher_db: float | None = None
    psnr_above_undistilled_db: float | None = None
    ground_truth_loss_db: float | None = None
    passes_ratio: float | None = Field(default=None, gt=0)
    operations_ratio: float | None = Field(default=None, gt=0)
    weights_ratio: float | None = Field(default=None, gt=0)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: dict[Annotated[int, Field(ge=1)], Limits] = Field(min_length=1)


@dataclass(frozen=True)
class Gates:
    """Limits by number of student steps, and the file that they come from."""

    file: str
    steps: dict[int, Limits]

    def of(self, steps: int) -> Limits:
        """Limits of a student.

        Raises:
            StillmotionError: there are none for so many steps.
        """
        if steps not in self.steps:
            known = ", ".join(str(number) for number in sorted(self.steps))
            raise StillmotionError(
                f"{self.file}: steps.{steps}: missing, and the student has {steps} steps; there are {known}"
            )
        return self.steps[steps]


@dataclass(frozen=True)
class GateResult:
    """One gate of a student.

    Attributes:
        value: what the student reached, to six digits; it is judged before it is rounded.
    """

    name: str
    value: float
    limit: float
    passed: bool

    @property
    def line(self) -> str:
        """For people: "psnr_to_teacher_db: 27.1, at least 30"."""
        side = "at most" if self.name in _AT_MOST else "at least"
        return f"{self.name}: {self.value:g}, {side} {self.limit:g}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class GateFailed(StillmotionError):
    """A student that is not good enough. After a first line each failed gate has one of its own."""

    def __init__(self, comparison: Comparison, results: Sequence[GateResult]) -> None:
        self.failed = [result for result in results if not result.passed]
        student = comparison.student
        first = (
            f"{student.model}: {len(self.failed)} of {len(results)} gates failed, judged on {student.clips} clips "
            f"against {comparison.teacher.model}:"
        )
        super().__init__("\n  ".join([first, *(result.line for result in self.failed)]))


def load_gates(file: str | Path = "default") -> Gates:
    """Read gates from a YAML file; "default" takes those that ship with the project.

    Raises:
        StillmotionError: not there, or a key or a limit is wrong; the text names both.
    """
    path = DEFAULT_GATES if str(file) == "default" else Path(file)
    try:
        read = read_yaml(path, _File, lambda content: _without_retired(content, path))
    except FileNotFoundError as error:
        raise StillmotionError(f"{path}: no such file of gates; `default` takes the project's own") from error
    return Gates(str(path), read.steps)


def _without_retired(content: object, path: Path) -> object:
    """Return the content of a file of gates without limits that are no longer judged; a line is written for each."""
    steps = content.get("steps") if isinstance(content, dict) else None
    for number, limits in steps.items() if isinstance(steps, dict) else ():
        for name in _RETIRED.keys() & (limits.keys() if isinstance(limits, dict) else ()):
            del limits[name]
            tell(f"{path}: steps.{number}.{name}: {_RETIRED[name]}")
    return content


def check(comparison: Comparison, gates: Gates) -> list[GateResult]:
    """Hold a student against the limits for its number of steps.

    A teacher none of whose clips moves as captioned is no measure of motion: the share is then 0.

    Raises:
        StillmotionError: there are no limits for so many steps.
    """
    limits = gates.of(comparison.student.steps)
    values = _values(comparison)
    results = []
    for name in Limits.model_fields:
        limit = getattr(limits, name)
        if limit is not None:
            value = values[name]
            passed = value <= limit if name in _AT_MOST else value >= limit
            results.append(GateResult(name, round(value, 6), limit, passed))
    return results


def require(comparison: Comparison, gates: Gates) -> list[GateResult]:
    """`check`, for a stage that must not go on.

    Raises:
        GateFailed: with every gate that failed.
    """
    results = check(comparison, gates)
    if not all(result.passed for result in results):
        raise GateFailed(comparison, results)
    return results


def _values(comparison: Comparison) -> dict[str, float]:
    student, teacher, undistilled = comparison.student, comparison.teacher, comparison.undistilled
    assert student.psnr_to_teacher_db is not None
    assert undistilled.psnr_to_teacher_db is not None
    assert teacher.operations is not None
    assert teacher.weights_bytes is not None
    assert student.operations is not None
    assert student.weights_bytes is not None
    values = {
        "motion_of_teacher": student.motion_accuracy / teacher.motion_accuracy if teacher.motion_accuracy else 0.0,
        "psnr_to_teacher_db": student.psnr_to_teacher_db,
        "psnr_above_undistilled_db": student.psnr_to_teacher_db - undistilled.psnr_to_teacher_db,
        "ground_truth_loss_db": teacher.ground_truth_psnr_db - student.ground_truth_psnr_db,
        "passes_ratio": teacher.passes / student.passes,
        "operations_ratio": teacher.operations / student.operations,
        "weights_ratio": student.weights_bytes / teacher.weights_bytes,
    }
    # Differences of figures with three digits carry none beyond the ninth.
    return {name: round(value, 9) for name, value in values.items()}
