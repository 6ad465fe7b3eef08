import math
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StillmotionError
from pipeline.judge.evaluate import Comparison, EvaluationResult
from pipeline.judge.gates import DEFAULT_GATES, GateFailed, Gates, Limits, check, load_gates, require

NAMES = tuple(Limits.model_fields)
TEACHER_OPERATIONS, TEACHER_BYTES = 96_000, 1_000


def result(model="m", **figures):
    plain = dict.fromkeys(EvaluationResult.__dataclass_fields__)
    plain.update(model=model, clips=64, seed=0, motion_accuracy=1.0, ground_truth_psnr_db=25.0, seconds_per_clip=1.0)
    plain.update(steps=8, passes=8, operations=TEACHER_OPERATIONS, weights_bytes=TEACHER_BYTES)
    return EvaluationResult(**{**plain, **figures})


def comparison(**figures):
    """A student that passes the gates of 8 steps exactly at each limit, but for what is given."""
    at_the_limit = {
        "motion_accuracy": 0.98,
        "psnr_to_teacher_db": 30.0,
        "ground_truth_psnr_db": 24.5,
        "passes": 16,
        "operations": TEACHER_OPERATIONS / 10,
        "weights_bytes": 1.1 * TEACHER_BYTES,
    }
    return Comparison(
        teacher=result("teacher", steps=80, passes=160),
        undistilled_guided=result("teacher, 8 x 3", passes=24, psnr_to_teacher_db=28.0),
        undistilled=result("teacher, 8 x 1", psnr_to_teacher_db=28.0),
        student=result("student", **{**at_the_limit, **figures}),
    )


def test_the_projects_gates_cover_the_students_it_makes():
    gates = load_gates()
    assert gates.file == str(DEFAULT_GATES)
    assert sorted(gates.steps) == [1, 2, 4, 8]
    assert gates.of(8) == Limits(
        motion_of_teacher=0.98,
        psnr_to_teacher_db=30,
        psnr_above_undistilled_db=2,
        ground_truth_loss_db=0.5,
        passes_ratio=10,
        operations_ratio=10,
        weights_ratio=1.1,
    )
    assert all(limit is not None for limits in gates.steps.values() for limit in limits.model_dump().values())


def test_a_student_exactly_at_the_limits_passes():
    results = require(comparison(), load_gates())
    assert [(r.name, r.value, r.limit) for r in results] == [
        ("motion_of_teacher", 0.98, 0.98),
        ("psnr_to_teacher_db", 30, 30),
        ("psnr_above_undistilled_db", 2, 2),
        ("ground_truth_loss_db", 0.5, 0.5),
        ("passes_ratio", 10, 10),
        ("operations_ratio", 10, 10),
        ("weights_ratio", 1.1, 1.1),
    ]


@pytest.mark.parametrize(
    ("figures", "failed"),
    [
        ({"motion_accuracy": 0.9688}, ["motion_of_teacher"]),
        ({"psnr_to_teacher_db": 29.9}, ["psnr_to_teacher_db", "psnr_above_undistilled_db"]),
        ({"ground_truth_psnr_db": 24.4}, ["ground_truth_loss_db"]),
        ({"passes": 17}, ["passes_ratio"]),
        ({"operations": TEACHER_OPERATIONS / 9.9}, ["operations_ratio"]),
        ({"weights_bytes": 1.2 * TEACHER_BYTES}, ["weights_ratio"]),
        ({"ground_truth_psnr_db": 30.0}, []),  # better than the teacher
    ],
)
def test_each_gate_fails_on_its_own_figure(figures, failed):
    results = check(comparison(**figures), load_gates())
    assert [r.name for r in results if not r.passed] == failed
    assert all(math.isfinite(r.value) for r in results)


def test_no_gate_depends_on_seconds():
    limits = load_gates()
    fast, slow = (check(comparison(seconds_per_clip=seconds), limits) for seconds in (1e-9, 1e9))
    assert fast == slow


def test_a_limit_on_seconds_of_an_earlier_release_is_read_and_not_judged(tmp_path, capsys):
    path = tmp_path / "own.yaml"
    path.write_text("steps: {8: {speedup: 1000, passes_ratio: 6}}\n")
    assert [r.name for r in require(comparison(), load_gates(path))] == ["passes_ratio"]
    assert "own.yaml: steps.8.speedup: seconds are no longer judged" in capsys.readouterr().err


def test_an_error_lists_every_failed_gate_with_value_and_limit():
    with pytest.raises(GateFailed) as caught:
        require(comparison(motion_accuracy=0.5, ground_truth_psnr_db=20.25), load_gates())
    assert str(caught.value).splitlines() == [
        "student: 2 of 7 gates failed, judged on 64 clips against teacher:",
        "  motion_of_teacher: 0.5, at least 0.98",
        "  ground_truth_loss_db: 4.75, at most 0.5",
    ]
    assert [r.name for r in caught.value.failed] == ["motion_of_teacher", "ground_truth_loss_db"]


def test_a_teacher_that_moves_nothing_as_captioned_is_no_measure():
    lost = comparison(motion_accuracy=0.5)
    lost = replace(lost, teacher=replace(lost.teacher, motion_accuracy=0.0))
    motion = check(lost, load_gates())[0]
    assert (motion.value, motion.passed) == (0, False)


def test_a_limit_that_is_left_out_is_not_judged():
    results = check(comparison(motion_accuracy=0.1), Gates("own.yaml", {8: Limits(passes_ratio=2)}))
    assert [(r.name, r.passed) for r in results] == [("passes_ratio", True)]


def test_a_student_of_other_steps_is_refused():
    with pytest.raises(StillmotionError, match=r"own\.yaml: steps\.8: missing.*8 steps; there are 2, 4"):
        check(comparison(), Gates("own.yaml", {4: Limits(), 2: Limits()}))


@settings(max_examples=50, deadline=None)
@given(
    motion=st.floats(0, 1),
    psnr=st.floats(5, 60),
    truth=st.floats(5, 60),
    operations=st.integers(1, 10**9),
    data=st.data(),
)
def test_a_student_that_is_better_in_every_figure_fails_no_further_gate(motion, psnr, truth, operations, data):
    gates = load_gates()

    def failed(**figures):
        return {r.name for r in check(comparison(**figures), gates) if not r.passed}

    plain = failed(motion_accuracy=motion, psnr_to_teacher_db=psnr, ground_truth_psnr_db=truth, operations=operations)
    more = data.draw(st.floats(0, 1))
    better = failed(
        motion_accuracy=min(1, motion + more),
        psnr_to_teacher_db=psnr + more,
        ground_truth_psnr_db=truth + more,
        operations=operations * (1 - more / 2),
    )
    assert better <= plain


@settings(max_examples=25, deadline=None)
@given(
    blocks=st.dictionaries(
        st.integers(1, 64),
        st.dictionaries(st.sampled_from(NAMES), st.floats(0.001, 100), min_size=1),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_written_is_read(blocks, tmp_path_factory):
    path = tmp_path_factory.mktemp("gates") / "own.yaml"
    path.write_text(yaml.safe_dump({"steps": blocks}))
    read = load_gates(path)
    assert {steps: limits.model_dump(exclude_none=True) for steps, limits in read.steps.items()} == blocks


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps: {8: {speed: 3}}\n", r"steps\.8\.speed: .* \(is 3\)"),
        ("steps: {8: {passes_ratio: -2}}\n", r"steps\.8\.passes_ratio: .*greater than 0 \(is -2\)"),
        ("steps: {8: {psnr_to_teacher_db: high}}\n", r"steps\.8\.psnr_to_teacher_db: .* \(is 'high'\)"),
        ("steps: {8: {psnr_to_teacher_db: .inf}}\n", r"steps\.8\.psnr_to_teacher_db: .*finite"),
        ("steps: {0: {passes_ratio: 2}}\n", r"steps\.0: .*greater than or equal to 1"),
        ("steps: {}\n", "steps: "),
        ("gates: {}\n", "steps: Field required"),
        ("just text\n", r"\(top\): "),
        ("a: [1,\nb: }\n", "cannot be read"),
    ],
)
def test_a_wrong_file_is_one_line_with_file_key_and_value(tmp_path, text, told):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(StillmotionError, match=rf"own\.yaml: {told}") as caught:
        load_gates(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StillmotionError, match=r"none\.yaml: no such file of gates"):
        load_gates(tmp_path / "none.yaml")
