"""What a run judges on: clips that a program draws, of which the truth is known, or photographs, of which it is not.

The shipped teacher knows the scenes that `pipeline.clips` draws, which tell whether a clip moves as its caption says.
Other checkpoints have seen the world. They are judged on photographs by what users complain about: that the first frame
is not their picture, that a clip stands still, gets darker or is the same with every seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL.Image import Image

from ..clips import SceneGenerator
from ..console import news
from ..distill.folders import CaptionedSource, open_folder
from ..errors import StillmotionError
from ..judge.evaluate import Comparison, EvaluationResult, compare_students, evaluate
from ..judge.gates import GateFailed, GateResult, Gates, check, check_pictures
from ..judge.on_pictures import (
    PictureComparison,
    PictureResult,
    compare_students_on_pictures,
    evaluate_on_pictures,
)
from ..judge.photographs import PHOTOGRAPHS, photographs, read_pictures
from ..serve.sources import EMBEDDED_TEACHER, name_of
from .results import Row
from .settings import Sample, read_samples

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline
    from ..serve.engine import Animator

GENERATED = "generated"

Result = EvaluationResult | PictureResult
Compared = Comparison | PictureComparison
Progress = Callable[[int, int], None]


def listed(source: str) -> list[tuple[Path, str]]:
    """Return file and caption of each picture, in the order of their names.

    Args:
        source: a folder laid out as `pipeline distill` takes it, or "photographs" for those of scikit-image.

    Raises:
        StillmotionError: there is no such folder, it has no pictures, or one has no caption.
    """
    folder = Path(source)
    if source == PHOTOGRAPHS and not folder.is_dir():
        return photographs()
    # Shape and batch are of training; the files and captions are what counts here.
    found = open_folder(folder, frames=1, height=8, width=8, batch=1)
    assert isinstance(found, CaptionedSource)
    if found.has_clips:
        raise StillmotionError(f"{folder}: holds videos; a folder to judge with holds pictures")
    return sorted(found.rows)


class Bar(NamedTuple):
    """What a plot of students shows of one; the motion is of the caption's, or of the teacher's on photographs."""

    psnr_to_teacher_db: float | None
    motion_accuracy: float


@dataclass(frozen=True)
class HeldOut:
    """Generated clips, or photographs.

    Attributes:
        pictures: file and caption of each photograph; None for generated clips.
        clips: how many are judged; 0 judges nothing. There may be fewer photographs.
        seed: of the clips and of the noise.
        seeds_per_clip: clips of a picture from different seeds; from 2 on their diversity is judged.
    """

    pictures: tuple[tuple[Path, str], ...] | None
    clips: int
    seed: int = 0
    seeds_per_clip: int = 1

    @classmethod
    def of(cls, on: str, model: str, clips: int, seed: int = 0, seeds_per_clip: int = 1) -> HeldOut:
        """Return what a model is judged on.

        Args:
            on: "generated", "photographs", or a folder of pictures with captions; empty: generated clips for the
                shipped teacher, and photographs for any other, where the extra `judge` is installed.
            model: name of the checkpoint.

        Raises:
            StillmotionError: no such folder, or what it takes is not installed.
        """
        if not on and model != name_of(EMBEDDED_TEACHER):
            able = all(find_spec(name) for name in ("skimage", "cv2"))
            on = PHOTOGRAPHS if able else GENERATED
            if not able:
                news(f"{model} is judged on generated clips: photographs take pip install 'stillmotion[judge]'")
        on = on or GENERATED
        pictures = None if on == GENERATED else tuple(listed(on))
        return cls(pictures, clips, seed, seeds_per_clip)

    @property
    def words(self) -> str:
        if self.pictures is None:
            return f"{self.clips} held-out clips"
        return f"{len(self._judged)} photographs"

    @property
    def _judged(self) -> tuple[tuple[Path, str], ...]:
        assert self.pictures is not None
        return self.pictures[: self.clips]

    def samples(self, file: str, count: int) -> list[Sample]:
        """Return pictures to show: of a YAML file where one is named, else photographs or the project's own."""
        if file or self.pictures is None:
            return read_samples(file, count)
        return [Sample(path, caption, seed) for seed, (path, caption) in enumerate(self.pictures[:count], start=1)]

    def batch(self, pipe: ImageAnimationPipeline, count: int) -> tuple[list[Image], list[str]]:
        """Return pictures and captions on which solvers are compared."""
        if self.pictures is None:
            side = min(*pipe.default_size, 128)
            source = SceneGenerator(side, pipe.config.num_frames, self.seed + 7, held_out=True, judged=True)
            drawn = source.batch(count)
            return drawn.pictures(), drawn.captions
        found = read_pictures(self.pictures[:count])
        return [one.image for one in found], [one.caption for one in found]

    def evaluate(self, model: Animator) -> Result | None:
        """Return the figures of a model by itself; None where nothing is to be judged."""
        if not self.clips:
            return None
        if self.pictures is None:
            return evaluate(model, self.clips, self.seed)
        pictures = read_pictures(self._judged)
        return evaluate_on_pictures(model, pictures, self.seed, seeds_per_clip=self.seeds_per_clip)

    def compare(
        self, students: Mapping[str, Animator], teacher: Animator, on_progress: Progress | None = None
    ) -> dict[str, Compared]:
        """Return the figures of students, each beside its teacher and the teacher with as few steps and passes."""
        options: dict[str, Any] = {"on_progress": on_progress, "seeds_per_clip": self.seeds_per_clip}
        if self.pictures is None:
            return {**compare_students(students, teacher, self.clips, self.seed, **options)}
        return {**compare_students_on_pictures(students, teacher, read_pictures(self._judged), self.seed, **options)}

    def rows(self, result: Result) -> list[Row]:
        """Return the figures of a model by itself, those first that the report opens with."""
        if isinstance(result, EvaluationResult):
            low, high = result.motion_accuracy_interval
            note = f"{result.clips} held-out clips, 95 % interval {100 * low:.0f} to {100 * high:.0f} %"
            return [
                Row(name="Motion as captioned", value=100 * result.motion_accuracy, unit="%", note=note, headline=True),
                _first_frame(result, headline=True),
                Row(name="Autoencoder alone", value=result.vae_psnr_db, unit="dB", note="PSNR; bounds the line above"),
                Row(
                    name="All frames against the generated clip",
                    value=result.ground_truth_psnr_db,
                    unit="dB",
                    note="PSNR",
                ),
                Row(
                    name="Outline of the sprite kept",
                    value=result.outline_iou,
                    note=f"overlap in the last frame, median; 10th percentile {result.outline_iou_p10:.2f}",
                ),
                Row(name="Colour of the sprite", value=result.colour_error, note="off by so much in CIE L*a*b*"),
                Row(name="Background kept", value=result.background_psnr_db, unit="dB", note="PSNR, last frame"),
            ]
        own = result.own_picture_share
        drift = "the last frames against the first"
        rows = [
            _first_frame(result, headline=True),
            Row(name="Autoencoder alone", value=result.vae_psnr_db, unit="dB", note="PSNR; bounds the line above"),
            Row(
                name="Nearer to its own picture than to any other",
                value=None if own is None else 100 * own,
                unit="%",
                note=f"of {result.clips} clips",
                headline=True,
            ),
            Row(name="Motion", value=result.motion, unit="% of the shorter side a second", note="optical flow"),
            Row(name="Drift of brightness", value=result.brightness_drift, unit="of 255", note=drift),
            Row(name="Drift of colour", value=result.colour_drift, unit="of 255", note=drift),
            Row(name="Saturation", value=result.saturation, note=f"drift {result.saturation_drift:.2f}"),
            Row(name="Flicker", value=result.flicker, unit="of 255"),
        ]
        if result.diversity is not None:
            note = f"of {self.seeds_per_clip} seeds a picture"
            rows.append(Row(name="Diversity", value=result.diversity, unit="of 255", note=note))
        return rows

    def compared_rows(self, result: Result, before: Mapping[str, Any]) -> list[Row]:
        """Return the figures that a change of the sampling may have changed, with what they were.

        Args:
            before: figures of the same checkpoint as it came, by name; empty where nobody knows.
        """
        first = _first_frame(result, headline=False)
        if isinstance(result, PictureResult):
            was = before.get("motion")
            note = "optical flow" if was is None else f"optical flow; the teacher {was:.2f}"
            return [Row(name="Motion", value=result.motion, unit="% of the shorter side a second", note=note), first]
        was = before.get("motion_accuracy")
        note = f"{result.clips} held-out clips" + ("" if was is None else f"; the teacher {100 * was:.1f} %")
        return [Row(name="Motion as captioned", value=100 * result.motion_accuracy, unit="%", note=note), first]

    def row(self, name: str, result: Result) -> Row:
        """Return one line of a table of models."""
        like = "" if result.psnr_to_teacher_db is None else f"{result.psnr_to_teacher_db:.1f} dB to the teacher, "
        if isinstance(result, EvaluationResult):
            words = f"{result.passes} passes, {like}{result.ground_truth_psnr_db:.1f} dB to the true clip"
            return Row(name=f"{name}: motion as captioned", value=100 * result.motion_accuracy, unit="%", note=words)
        kept = "" if result.motion_of_teacher is None else f"{100 * result.motion_of_teacher:.0f} % of the teacher's, "
        first = f"first frame {result.first_frame_psnr_db:.1f} dB"
        words = f"{kept}{result.passes} passes, {like}{first}, drift {result.brightness_drift:.1f} of 255"
        return Row(name=f"{name}: motion", value=result.motion, unit="% of the side a second", note=words)

    def bars(self, comparison: Compared) -> tuple[Bar, Bar]:
        """Return what a plot shows of a student, and of the undistilled teacher with as many passes."""
        one, other = comparison.student, comparison.undistilled
        if isinstance(one, EvaluationResult):
            assert isinstance(other, EvaluationResult)
            moved = (one.motion_accuracy, other.motion_accuracy)
        else:
            assert isinstance(other, PictureResult)
            moved = (one.motion_of_teacher or 0.0, other.motion_of_teacher or 0.0)
        return Bar(one.psnr_to_teacher_db, moved[0]), Bar(other.psnr_to_teacher_db, moved[1])

    def check_file(self, gates: Gates, steps: int) -> None:
        """Refuse a file of gates that has no limits for a student of so many steps, before any training."""
        if self.pictures is None:
            gates.of(steps)
        else:
            gates.on_pictures()

    def held_against(self, comparison: Compared, gates: Gates) -> list[GateResult]:
        """Return the gates of a student."""
        if isinstance(comparison, Comparison):
            return check(comparison, gates)
        return check_pictures(comparison, gates)


def require(comparison: Compared, results: list[GateResult]) -> None:
    """Stop a stage that must not go on.

    Raises:
        GateFailed: with every gate that failed.
    """
    if not all(result.passed for result in results):
        raise GateFailed(comparison, results)


def _first_frame(result: Result, *, headline: bool) -> Row:
    value = result.first_frame_psnr_db
    return Row(name="First frame against the picture", value=value, unit="dB", note="PSNR", headline=headline)
