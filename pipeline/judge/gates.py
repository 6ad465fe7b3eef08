"""Gates: what a student has to reach beside its teacher, or the pipeline stops before packaging.

All are judged on point estimates over the clips of one comparison. Student and teacher animate the same
pictures from the same noise, so that most of what makes a clip hard cancels out; what is left of chance is
still large with few clips. With 64 of them one clip is 1.6 % of the motion accuracy: a limit of 0.98 of the
teacher's then lets it lose one clip, and with fewer than 50 clips none. Results and errors say the number.

What a student saves is judged by what can be counted: passes, operations, bytes. Seconds depend on what else the
machine does; they are reported beside the gates and judge nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ..console import tell
from ..errors import StillmotionError
from ..reading import read_yaml

if TYPE_CHECKING:
    from .evaluate import Comparison
    from .on_pictures import PictureComparison

DEFAULT_GATES = Path(__file__).parents[1] / "presets" / "gates.yaml"
"""Shipped with the project."""

_AT_MOST = {  # every other limit is a least value
    "ground_truth_loss_db",
    "weights_ratio",
    "first_frame_loss_db",
    "motion_of_teacher_most",
    "brightness_drift_more",
    "colour_drift_more",
    "saturation_of_teacher_most",
    "flicker_more",
}

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
        passes_ratio: passes of the teacher's clip, as a multiple of the student's, at least.
        operations_ratio: the same for the floating-point operations of those passes, at least.
        weights_ratio: bytes of the student's networks, as a multiple of the teacher's, at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    motion_of_teacher: float | None = Field(default=None, ge=0)
    psnr_to_teacher_db: float | None = None
    psnr_above_undistilled_db: float | None = None
    ground_truth_loss_db: float | None = None
    passes_ratio: float | None = Field(default=None, gt=0)
    operations_ratio: float | None = Field(default=None, gt=0)
    weights_ratio: float | None = Field(default=None, gt=0)


class PictureLimits(BaseModel):
    """Limits of a student on pictures without true clips, whatever its steps; None does not judge.

    They answer what users say of few-step students: that the picture is not theirs, that a clip stands still or is
    slow, gets darker or garish, and is the same with every seed.

    Attributes:
        first_frame_loss_db: PSNR of the first frame to the picture that may be lost against the teacher's, at most.
        own_picture_share: share of clips that are nearer to their own picture than to any other, at least.
        motion_of_teacher_least, motion_of_teacher_most: optical flow as a share of the teacher's.
        brightness_drift_more, colour_drift_more: drift above the teacher's, in steps of 255, at most.
        saturation_of_teacher_least, saturation_of_teacher_most: as a share of the teacher's.
        flicker_more: flicker above the teacher's, in steps of 255, at most.
        diversity_of_teacher: as a share of the teacher's, at least; judged where diversity is measured.
        psnr_to_teacher_db, ssim_to_teacher, psnr_above_undistilled_db: at least, for students that land on the
            teacher's own clips.
        passes_ratio: passes of the teacher's clip, as a multiple of the student's, at least.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    first_frame_loss_db: float | None = None
    own_picture_share: float | None = Field(default=None, ge=0, le=1)
    motion_of_teacher_least: float | None = Field(default=None, ge=0)
    motion_of_teacher_most: float | None = Field(default=None, gt=0)
    brightness_drift_more: float | None = None
    colour_drift_more: float | None = None
    saturation_of_teacher_least: float | None = Field(default=None, ge=0)
    saturation_of_teacher_most: float | None = Field(default=None, gt=0)
    flicker_more: float | None = None
    diversity_of_teacher: float | None = Field(default=None, ge=0)
    psnr_to_teacher_db: float | None = None
    ssim_to_teacher: float | None = Field(default=None, le=1)
    psnr_above_undistilled_db: float | None = None
    passes_ratio: float | None = Field(default=None, gt=0)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    pictures: PictureLimits | None = None
    steps: dict[Annotated[int, Field(ge=1)], Limits]

    @field_validator("steps")
    @classmethod
    def _some(cls, steps: dict[int, Limits], info: ValidationInfo) -> dict[int, Limits]:
        if not steps and info.data.get("pictures") is None:
            raise ValueError("there are no limits")
        return steps


@dataclass(frozen=True)
class Gates:
    """Limits by number of student steps, those on pictures, and the file that they come from."""

    file: str
    steps: dict[int, Limits]
    pictures: PictureLimits | None = None

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

    def on_pictures(self) -> PictureLimits:
        """Limits on pictures.

        Raises:
            StillmotionError: there are none in the file.
        """
        if self.pictures is None:
            raise StillmotionError(f"{self.file}: pictures: missing; limits on pictures are read from there")
        return self.pictures


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

    def __init__(self, comparison: Comparison | PictureComparison, results: Sequence[GateResult]) -> None:
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
    return Gates(str(path), read.steps, read.pictures)


def _without_retired(content: object, path: Path) -> object:
    """Return the content of a file of gates without limits that are no longer judged; a line is written for each."""
    if isinstance(content, dict) and "pictures" in content:
        content.setdefault("steps", {})  # limits on pictures hold whatever the steps
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
    return _held_against(gates.of(comparison.student.steps), _values(comparison))


def check_pictures(comparison: PictureComparison, gates: Gates) -> list[GateResult]:
    """Hold a student against the limits on pictures.

    A teacher that stands still is no measure of motion: the share is then 0, which no student passes.

    Raises:
        StillmotionError: the file has no limits on pictures.
    """
    return _held_against(gates.on_pictures(), _values_on_pictures(comparison))


def _held_against(limits: BaseModel, values: Mapping[str, float | None]) -> list[GateResult]:
    """Return a result for each limit that there is and each figure that was measured."""
    results = []
    for name, limit in limits:
        value = values[name]
        if limit is not None and value is not None:
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


def _values_on_pictures(comparison: PictureComparison) -> dict[str, float | None]:
    student, teacher, undistilled = comparison.student, comparison.teacher, comparison.undistilled
    assert student.psnr_to_teacher_db is not None
    assert undistilled.psnr_to_teacher_db is not None
    values = {
        "first_frame_loss_db": teacher.first_frame_psnr_db - student.first_frame_psnr_db,
        "own_picture_share": student.own_picture_share,
        "motion_of_teacher_least": student.motion_of_teacher,
        "motion_of_teacher_most": student.motion_of_teacher,
        "brightness_drift_more": student.brightness_drift - teacher.brightness_drift,
        "colour_drift_more": student.colour_drift - teacher.colour_drift,
        "saturation_of_teacher_least": student.saturation_of_teacher,
        "saturation_of_teacher_most": student.saturation_of_teacher,
        "flicker_more": student.flicker - teacher.flicker,
        "diversity_of_teacher": student.diversity_of_teacher,
        "psnr_to_teacher_db": student.psnr_to_teacher_db,
        "ssim_to_teacher": student.ssim_to_teacher,
        "psnr_above_undistilled_db": student.psnr_to_teacher_db - undistilled.psnr_to_teacher_db,
        "passes_ratio": teacher.passes / student.passes,
    }
    return {name: None if value is None else round(value, 9) for name, value in values.items()}


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
