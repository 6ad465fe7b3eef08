"""What the system refuses: full disks, odd names, folders that cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands.cli import main
from pipeline.console import Counter
from pipeline.errors import StillmotionError
from pipeline.runs.settings import parse_value
from pipeline.writing import held


def test_out_that_is_the_input_picture_is_refused_before_the_computation(animate, tmp_path, picture, capsys):
    photo = tmp_path / "photo.webp"
    picture(48, 40).save(photo)
    before = photo.read_bytes()
    (tmp_path / "link.webp").symlink_to(photo)
    for out in (photo, tmp_path / "link.webp"):
        assert animate("--image", str(photo), "--out", str(out)) == 1
        said = capsys.readouterr().err
        assert "is the input picture, which would be lost" in said
        assert "model" not in said
    assert photo.read_bytes() == before


@pytest.mark.parametrize("out", ["folder.gif", "/proc/clip.gif", f"{'x' * 300}.gif"])
def test_out_that_cannot_be_written_is_refused_before_the_computation(animate, tmp_path, out, capsys):
    (tmp_path / "folder.gif").mkdir()
    assert animate("--out", str(tmp_path / out)) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")


@pytest.mark.parametrize("option", ["--image", "--model"])
def test_a_name_that_is_too_long_is_one_line(animate, option, capsys):
    assert animate(option, "x" * 5000) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "too long" in said[0] or "neither a folder" in said[0]


@pytest.mark.parametrize("command", ["animate", "demo"])
def test_a_prompt_that_is_not_utf8_is_wrong_use(image, tmp_path, command, capsys):
    out = ["--out", str(tmp_path / "clip.gif")] if command == "animate" else []
    with pytest.raises(SystemExit) as caught:
        main([command, "--image", str(image), "--prompt", os.fsdecode(b"a red \xff"), *out])
    assert caught.value.code == 2
    assert "argument --prompt: is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line():
    code = "from pipeline.console import write_result as w\nfrom pipeline.errors import StillmotionError as E\n"
    code += "try: w('x' * 100_000)\nexcept E as error: print(error, file=__import__('sys').stderr)"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert done.returncode == 0
    assert done.stderr == "stdout: cannot be written (No space left on device)\n"


def test_a_result_may_hold_a_name_that_is_no_text():
    code = "from pipeline.console import write_result; write_result('clip-' + chr(0xdcff))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, b"clip-\xff")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--runs", "{file}/runs"],
        ["train", "vae", "--out", "{file}/out"],
        ["bench", "--out", "{file}/out"],
        ["distill", "--out", "{file}/out", "-p", "updates", "1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_folder_that_cannot_be_made_is_one_line(arguments, teacher_folder, tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("BENTOML_HOME", str(file / "store"))
    known = {"file": str(file), "teacher": str(teacher_folder)}
    assert main([part.format(**known) for part in arguments]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(file) in errors[0]


def test_a_folder_is_held_until_the_process_that_holds_it_ends(tmp_path):
    code = f"""
import os, pathlib
from pipeline.writing import held
with held(pathlib.Path({str(tmp_path)!r}), "run"):
    print("held", flush=True)
    input()
    os._exit(9)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(StillmotionError, match="another process is at work on this run"), held(tmp_path, "run"):
        pass
    other.communicate("\n", timeout=120)
    with held(tmp_path, "run"):
        pass


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("no", str, "no"),
        ("no", bool, False),
        ("3e-4", float, 3e-4),
        ("1e3", float, 1000.0),
        ("null", int | None, None),
        ("7", int | None, 7),
        ("null", str, "null"),
        ("[32, 64]", tuple[int, ...], (32, 64)),
        ("[1.5, 3]", tuple[float, float] | None, (1.5, 3.0)),
        ("#x", str, "#x"),
    ],
)
def test_a_setting_is_read_by_its_type(text, kind, value):
    assert parse_value(text, kind) == value


@pytest.mark.parametrize(
    ("text", "kind"), [("1:30", int), ("many", int), ("2.5", int), ("[1", tuple[int, ...]), ("maybe", bool)]
)
def test_a_setting_of_another_type_is_refused(text, kind):
    with pytest.raises(ValueError, match=r"."):
        parse_value(text, kind)


def test_the_time_that_is_left_is_said_once_the_pace_is_known():
    lines = []
    in_batches = Counter("clip", lines.append)
    for done in (8, 16, 32):
        in_batches(done, 32)
    assert lines == ["clip 8 of 32", "clip 16 of 32, about 10 s left", "clip 32 of 32"]
    lines.clear()
    one_by_one = Counter("step", lines.append)
    for done in (1, 2, 3):
        one_by_one(done, 3, note="loss 1")
    assert lines[:2] == [f"step {done} of 3, loss 1, about 10 s left" for done in (1, 2)]
