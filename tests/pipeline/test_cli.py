import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.commands.cli import main
from pipeline.distill.student import build_student, teacher_grid
from pipeline.media import video
from pipeline.media.formats import FORMATS
from pipeline.serve.engine import load_pipeline

DESIGNED_KEYS = {
    "model",
    "clips",
    "seed",
    "motion_accuracy",
    "first_frame_psnr_db",
    "vae_psnr_db",
    "ground_truth_psnr_db",
    "psnr_to_teacher_db",
    "steps",
    "passes",
}


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], capture_output=True, text=True, timeout=280, check=False
    )


def test_help_comes_without_heavy_imports():
    code = (
        "import sys; from pipeline.commands.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'torch', 'diffusers', 'bentoml', 'papermill', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("run", "animate", "evaluate", "package", "train", "demo"):
        assert f"  {command} " in done.stdout


def test_evaluate_prints_one_document_and_nothing_of_the_libraries(teacher_folder):
    done = start("evaluate", "--model", str(teacher_folder), "--clips", "2", "--seed", "5", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.keys() >= DESIGNED_KEYS
    assert (result["clips"], result["seed"], result["psnr_to_teacher_db"]) == (2, 5, None)
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["model", "clip"]


@pytest.fixture(scope="module")
def student_folder(teacher_folder, tmp_path_factory) -> Path:
    """An untrained student of the random teacher: one step, one pass."""
    teacher = load_pipeline(teacher_folder)
    folder = tmp_path_factory.mktemp("student") / "small"
    grid = teacher_grid(teacher, student_steps=1)
    build_student(teacher, copy.deepcopy(teacher.unet), grid).save_pretrained(folder)
    return folder


@pytest.fixture
def compare(teacher_folder, student_folder):
    """`evaluate` of the student beside its teacher."""
    given = ["--model", str(student_folder), "--teacher", str(teacher_folder), "--clips", "2", "--compare"]
    return lambda *more: main(["evaluate", *given, *more])


@pytest.mark.parametrize("option", ["--guidance-scale", "--image-guidance-scale"])
def test_guidance_on_top_of_what_a_student_has_in_its_weights_is_refused(student_folder, option, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--model", str(student_folder), "--clips", "1", option, "2"])
    assert caught.value.code == 2
    assert f"{option}: 2 cannot be chosen: this student has its guidance in its weights" in capsys.readouterr().err


def gates_file(folder: Path, limit: float, steps: int = 1) -> str:
    path = folder / "own.yaml"
    path.write_text(f"steps: {{{steps}: {{ground_truth_loss_db: {limit}, psnr_to_teacher_db: {-limit}}}}}\n")
    return str(path)


def test_a_model_is_judged_with_other_steps_and_guidance(teacher_folder, capsys):
    given = ["evaluate", "--model", str(teacher_folder), "--clips", "1", "--json"]
    assert main([*given, "--steps", "3", "--guidance-scale", "1", "--image-guidance-scale", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["model"], result["steps"], result["passes"]) == ("tiny, 3 x 1", 3, 3)
    with pytest.raises(SystemExit) as caught:
        main([*given, "--guidance-scale", "101"])
    assert caught.value.code == 2
    assert "--guidance-scale: 101.0 is outside 0 to 100" in capsys.readouterr().err


def test_a_comparison_stands_beside_the_figures_of_the_student(compare, tmp_path, capsys):
    assert compare("--gates", gates_file(tmp_path, limit=99), "--diversity", "2", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    gates, comparison = result.pop("gates"), result.pop("comparison")
    assert list(comparison) == ["teacher", "undistilled_guided", "undistilled", "student"]
    assert [column["model"] for column in comparison.values()] == ["tiny", "tiny, 1 x 3", "tiny, 1 x 1", "small"]
    assert comparison["student"] == result
    assert result["diversity"] > 0
    assert result.keys() >= DESIGNED_KEYS
    assert [(gate["name"], gate["limit"], gate["passed"]) for gate in gates] == [
        ("psnr_to_teacher_db", -99, True),
        ("ground_truth_loss_db", 99, True),
    ]


def test_a_failed_gate_exits_with_1_after_the_figures(compare, tmp_path, capsys):
    gates = gates_file(tmp_path, limit=-99)
    assert compare("--gates", gates, "--json") == 1
    said = capsys.readouterr()
    assert [gate["passed"] for gate in json.loads(said.out)["gates"]] == [False, False]
    assert "error: small: 2 of 2 gates failed, judged on 2 clips against tiny:" in said.err
    assert "  ground_truth_loss_db: " in said.err
    assert said.err.count("at most -99") == said.err.count("at least 99") == 1
    # For people: a table with a column for each, and a line for each gate.
    assert compare("--gates", gates) == 1
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["teacher", "tiny"]
    assert len(next(line for line in table if line.startswith("psnr_to_teacher_db")).split()) == 5
    assert sum(line.startswith("FAILED") for line in table) == 2


def test_gates_are_read_before_anything_is_sampled(compare, tmp_path, capsys):
    assert compare("--gates", str(tmp_path / "none.yaml")) == 1
    assert "no such file of gates" in capsys.readouterr().err
    assert compare("--gates", gates_file(tmp_path, limit=1, steps=8)) == 1
    said = capsys.readouterr().err
    assert "steps.1: missing, and the student has 1 steps; there are 8" in said
    assert "clip " not in said


@pytest.mark.parametrize(("option", "text"), [("--clip", "no CLIP model there"), ("--i3d", "not a TorchScript file")])
def test_weights_that_are_not_there_are_named(teacher_folder, tmp_path, option, text, capsys):
    assert main(["evaluate", "--model", str(teacher_folder), "--clips", "1", option, str(tmp_path / "none")]) == 1
    assert f"{tmp_path / 'none'}: {text}" in capsys.readouterr().err


def test_animate_writes_a_clip_of_the_suffix(animate, tmp_path, capsys):
    for suffix in FORMATS:
        out = tmp_path / f"clip.{suffix}"
        assert animate("--out", str(out), "--seed", "3", "--json") == 0
        about = json.loads(capsys.readouterr().out)
        assert (about["seed"], about["frames"], about["passes"]) == (3, 4, 6)
        assert len(video.decode(out.read_bytes())) == 4
    assert not list(tmp_path.glob("*.partial"))


def test_animate_takes_frames_and_a_rate(animate, tmp_path, capsys):
    assert animate("--out", str(tmp_path / "x.webp"), "--frames", "3", "--fps", "5", "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["frames"], about["fps"]) == (3, 5)


def test_the_same_seed_gives_the_same_file(animate, tmp_path):
    clips = []
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        animate("--out", str(tmp_path / f"{name}.webp"), "--seed", seed)
        clips.append((tmp_path / f"{name}.webp").read_bytes())
    assert clips[0] == clips[1] != clips[2]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["animate"],
        ["evaluate", "--clips", "0"],
        ["evaluate", "--clips", "many"],
        ["evaluate", "--diversity", "0"],
        ["evaluate", "--compare", "--steps", "8"],
        ["evaluate", "--gates", "default", "--guidance-scale", "1"],
        ["run", "--resume", "x", "--preset", "tiny"],
        ["train", "unet"],
        ["train", "vae", "-p", "frames", "8"],
        ["train", "vae", "-p", "steps", "many"],
        ["demo", "--image", "x.png"],
        ["animate", "--image", "x.png", "--prompt", "x", "--out", "clip.avi"],
        ["animate", "--image", "x.png", "--prompt", "x", "--out", "clip.gif", "--frames", "0"],
        ["package", "--checkpoint", "x", "--runtime", "fastest"],
    ],
)
def test_wrong_use_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--image", "missing.png"], "missing.png: no such file"),
        (["--image", __file__], "image: not a readable picture"),
        (["--model", "nobody:knows"], "nobody:knows: neither a folder nor a model"),
        (["--model", str(Path(__file__).parent)], "no animator.json"),
        (["--seed", "-1"], "seed: -1 is outside"),
        (["--out", "no/such/folder/clip.mp4"], "no such folder"),
        (["--frames", "99"], "frames: 99 is outside"),
        (["--guidance-scale", "99"], "guidance_scale: "),
        (["--motion-scale", "1"], "motion_scale: "),
    ],
)
def test_a_failure_is_one_line_and_exits_with_1(animate, arguments, text, capsys):
    assert animate(*arguments) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert text in errors[0]


def test_a_failure_shows_no_traceback(tmp_path, capsys):
    assert main(["package", "--checkpoint", str(tmp_path), "--json"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "no model_index.json" in said.err


def test_package_makes_a_model_that_animate_and_evaluate_find(teacher_folder, animate, tmp_path, capsys):
    assert main(["package", "--checkpoint", str(teacher_folder), "--json"]) == 0
    packaged = json.loads(capsys.readouterr().out)
    assert packaged["tag"].startswith("animator:")
    assert packaged["max_difference"] == 0
    card = (Path(packaged["path"]) / "README.md").read_text()
    assert "2 steps x 3 guidance branches = 6 passes" in card
    assert animate("--model", packaged["tag"]) == 0
    capsys.readouterr()
    # The newest model of the store is the default.
    assert main(["evaluate", "--clips", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == packaged["tag"]
    # One that was changed is refused.
    changed = shutil.copytree(packaged["path"], tmp_path / "changed")
    (changed / "README.md").write_text(card + "better than it is")
    assert animate("--model", str(changed)) == 1
    assert "README.md has been changed or damaged" in capsys.readouterr().err


def test_a_large_picture_is_animated_too(animate, tmp_path):
    Image.new("RGB", (900, 500), (200, 30, 30)).save(tmp_path / "large.jpg")
    assert animate("--image", str(tmp_path / "large.jpg")) == 0


@pytest.mark.slow
def test_train_goes_from_nothing_to_a_teacher_that_animates(animate, tmp_path, capsys):
    out = tmp_path / "training"
    small = ["-p", "size", "16", "-p", "steps", "1", "-p", "batch", "2", "-p", "frames", "2"]
    small += ["-p", "refine_steps", "1"]
    assert main(["train", "--out", str(out), "--json", *small]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["vae_psnr_db"] > 0
    assert animate("--model", result["teacher"]) == 0


def test_a_teacher_without_an_autoencoder_is_refused(tmp_path, capsys):
    assert main(["train", "teacher", "--out", str(tmp_path)]) == 1
    assert "train the autoencoder first" in capsys.readouterr().err
