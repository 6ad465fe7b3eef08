"""What a run is judged on, by whose model it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import StillmotionError
from pipeline.judge.evaluate import EvaluationResult
from pipeline.judge.gates import load_gates
from pipeline.judge.on_pictures import PictureResult
from pipeline.runs.held_out import HeldOut
from pipeline.runs.settings import SAMPLES_FILE
from pipeline.serve.sources import EMBEDDED_TEACHER, name_of

OWN = name_of(EMBEDDED_TEACHER)


def generated(**figures) -> EvaluationResult:
    known = {"model": "m", "clips": 4, "seed": 0, "motion_accuracy": 0.75, "motion_accuracy_interval": (0.3, 0.95)}
    known |= {"accuracy_by_motion": {}, "unclear": 0, "first_frame_psnr_db": 30.0, "vae_psnr_db": 31.0, "steps": 8}
    known |= {
        "ground_truth_psnr_db": 26.0,
        "outline_iou": 0.9,
        "outline_iou_p10": 0.7,
        "colour_error": 3.0,
        "background_psnr_db": 30.0,
        "passes": 8,
        "seconds_per_clip": 0.1,
        "flicker": 1.0,
        "flicker_of_truth": 1.0,
    }
    return EvaluationResult(**{**known, **figures})


def on_pictures(**figures) -> PictureResult:
    known = {"model": "m", "clips": 8, "seed": 0, "steps": 4, "passes": 4, "precision": "bfloat16", "motion": 6.5}
    known |= {"seconds_per_clip": 0.1, "first_frame_psnr_db": 33.0, "first_frame_ssim": 0.9, "vae_psnr_db": 34.0}
    known |= {"brightness_trend": -1.0, "brightness_drift": 1.0, "colour_drift": 0.5, "saturation": 30.0}
    known |= {"saturation_drift": 0.2, "flicker": 0.8, "own_picture_share": 1.0}
    return PictureResult(**{**known, **figures})


def test_the_shipped_teacher_is_judged_on_generated_clips_and_shown_with_the_projects_samples():
    held_out = HeldOut.of("", OWN, 16)
    assert held_out.words == "16 held-out clips"
    assert held_out.samples("", 2)[0].path.parent == SAMPLES_FILE.parent
    rows = {row.name: row for row in held_out.rows(generated())}
    assert rows["Motion as captioned"].value == 75
    assert rows["Motion as captioned"].note == "4 held-out clips, 95 % interval 30 to 95 %"
    (motion, first) = held_out.compared_rows(generated(), {"motion_accuracy": 1.0})
    assert (motion.note, first.value) == ("4 held-out clips; the teacher 100.0 %", 30)
    assert held_out.row("student", generated(psnr_to_teacher_db=40.0)).note == (
        "8 passes, 40.0 dB to the teacher, 26.0 dB to the true clip"
    )


def test_any_other_checkpoint_is_judged_on_photographs_and_shown_with_them():
    held_out = HeldOut.of("", "Wan2.2-I2V-A14B", 16)
    assert held_out.words == "8 photographs"
    samples = held_out.samples("", 2)
    assert [sample.name for sample in samples] == ["astronaut", "chelsea"]
    assert samples[1].prompt.startswith("a tabby cat")
    assert held_out.samples(str(SAMPLES_FILE), 1)[0].path.parent == SAMPLES_FILE.parent  # what is named wins
    names = [row.name for row in held_out.rows(on_pictures(diversity=9.0))]
    assert {"Motion", "Drift of brightness", "Nearer to its own picture than to any other", "Diversity"} <= set(names)
    row = held_out.row("student", on_pictures(motion_of_teacher=0.9, psnr_to_teacher_db=28.0))
    assert row.note == "90 % of the teacher's, 4 passes, 28.0 dB to the teacher, first frame 33.0 dB, drift 1.0 of 255"
    (motion, _) = held_out.compared_rows(on_pictures(), {"motion": 6.0})
    assert motion.note == "optical flow; the teacher 6.00"


def test_a_person_may_choose(tmp_path, picture):
    assert HeldOut.of("generated", "Wan2.2-I2V-A14B", 4).pictures is None
    picture(40, 36).save(tmp_path / "cat.png")
    (tmp_path / "cat.txt").write_text("a cat blinks")
    assert HeldOut.of(str(tmp_path), OWN, 4).pictures == ((tmp_path / "cat.png", "a cat blinks"),)
    with pytest.raises(StillmotionError, match="there is no such folder"):
        HeldOut.of(str(tmp_path / "none"), OWN, 4)


def test_gates_that_a_file_lacks_are_missed_before_any_training(tmp_path):
    file = tmp_path / "gates.yaml"
    file.write_text("steps: {8: {psnr_to_teacher_db: 30}}\n")
    HeldOut.of("", OWN, 4).check_file(load_gates(file), 8)
    with pytest.raises(StillmotionError, match=r"steps\.4: missing"):
        HeldOut.of("", OWN, 4).check_file(load_gates(file), 4)
    with pytest.raises(StillmotionError, match="pictures: missing"):
        HeldOut.of("", "Wan2.2-I2V-A14B", 4).check_file(load_gates(file), 8)
    HeldOut.of("", "Wan2.2-I2V-A14B", 4).check_file(load_gates(Path("default")), 3)
