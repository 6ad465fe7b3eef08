import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline import video
from pipeline.cli import main

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
        [sys.executable, "-m", "pipeline", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def image(tmp_path, picture) -> Path:
    path = tmp_path / "photo.png"
    picture(48, 40).save(path)
    return path


@pytest.fixture
def animate(image, teacher_folder, tmp_path):
    """The arguments of a plain `animate`; later ones win."""
    out = str(tmp_path / "clip.webp")
    given = ["--image", str(image), "--prompt", "a red circle moves up", "--out", out, "--model", str(teacher_folder)]
    return lambda *more: main(["animate", *given, *more])


def test_help_comes_without_heavy_imports():
    code = (
        "import sys; from pipeline.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'torch', 'diffusers', 'bentoml', 'papermill', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
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


def test_animate_writes_a_clip_of_the_suffix(animate, tmp_path, capsys):
    for suffix in video.FORMATS:
        out = tmp_path / f"clip.{suffix}"
        assert animate("--out", str(out), "--seed", "3", "--json") == 0
        about = json.loads(capsys.readouterr().out)
        assert (about["seed"], about["frames"], about["passes"]) == (3, 4, 6)
        assert len(video.decode(out.read_bytes())) == 4
    assert not list(tmp_path.glob("*.partial"))


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
        ["run", "--resume", "x", "--preset", "tiny"],
        ["train", "unet"],
        ["train", "vae", "-p", "frames", "8"],
        ["train", "vae", "-p", "steps", "many"],
        ["demo", "--image", "x.png"],
        ["animate", "--image", "x.png", "--prompt", "x", "--out", "clip.avi"],
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
    ],
)
def test_a_failure_is_one_line_and_exits_with_1(animate, arguments, text, capsys):
    assert animate(*arguments) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert text in errors[0]


def test_a_failure_shows_no_traceback(tmp_path):
    done = start("package", "--checkpoint", str(tmp_path), "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "no model_index.json" in done.stderr


def test_package_makes_a_model_that_animate_and_evaluate_find(teacher_folder, animate, capsys):
    assert main(["package", "--checkpoint", str(teacher_folder), "--json"]) == 0
    packaged = json.loads(capsys.readouterr().out)
    assert packaged["tag"].startswith("animator:")
    assert packaged["max_difference"] == 0
    card = (Path(packaged["path"]) / "README.md").read_text()
    assert "2 steps x 3 guidance branches = 6 U-Net passes" in card
    assert animate("--model", packaged["tag"]) == 0
    capsys.readouterr()
    # The newest model of the store is the default.
    assert main(["evaluate", "--clips", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == packaged["tag"]


def test_a_package_that_was_changed_is_refused(teacher_folder, animate, capsys):
    main(["package", "--checkpoint", str(teacher_folder), "--json"])
    packaged = json.loads(capsys.readouterr().out)
    card = Path(packaged["path"]) / "README.md"
    card.write_text(card.read_text() + "better than it is")
    assert animate("--model", packaged["tag"]) == 1
    assert "README.md has been changed or damaged" in capsys.readouterr().err


def test_a_large_picture_is_animated_too(animate, tmp_path):
    Image.new("RGB", (900, 500), (200, 30, 30)).save(tmp_path / "large.jpg")
    assert animate("--image", str(tmp_path / "large.jpg")) == 0


@pytest.mark.slow
def test_train_goes_from_nothing_to_a_teacher_that_animates(animate, tmp_path, capsys):
    out = tmp_path / "training"
    small = ["-p", "size", "16", "-p", "steps", "1", "-p", "batch", "2", "-p", "frames", "2"]
    assert main(["train", "--out", str(out), "--json", *small]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["vae_psnr_db"] > 0
    assert animate("--model", result["teacher"]) == 0


def test_a_teacher_without_an_autoencoder_is_refused(tmp_path, capsys):
    assert main(["train", "teacher", "--out", str(tmp_path)]) == 1
    assert "train the autoencoder first" in capsys.readouterr().err
