import os
from pathlib import Path

import httpx
import nbformat
import pytest

from pipeline.commands.cli import main
from pipeline.commands.demo import post_animate, serving
from pipeline.errors import StillmotionError
from pipeline.media.video import decode
from pipeline.runs.settings import Sample, read_samples
from pipeline.serve.sources import EMBEDDED_STUDENT
from pipeline.serve.store import verify


def test_samples_are_pictures_with_captions_of_the_vocabulary():
    samples = read_samples()
    assert len(samples) >= 4
    for sample in samples:
        assert sample.path.stat().st_size < 60_000
        assert sample.prompt.split()[0] in {"a", "an"}


def test_the_shipped_student_is_a_package_of_8_passes_and_all_shipped_weights_are_small():
    info = verify(EMBEDDED_STUDENT)
    assert (info.steps, info.passes, info.guidance_distilled) == (8, 8, True)
    assert sum(path.lstat().st_size for path in EMBEDDED_STUDENT.parent.rglob("*") if path.is_file()) < 20e6


@pytest.mark.parametrize(
    "text", ["- picture: nothing.png\n  prompt: x\n", "- prompt: x\n", "just words", "[", "- colour: red\n"]
)
def test_a_wrong_list_of_samples_is_named(tmp_path, text):
    path = tmp_path / "samples.yaml"
    path.write_text(text)
    with pytest.raises(StillmotionError, match=r"samples\.yaml"):
        read_samples(path)


def test_a_picture_that_cannot_be_read_is_refused_before_any_work(tmp_path, capsys):
    assert main(["demo", "--image", __file__, "--prompt", "x", "--runs", str(tmp_path / "runs")]) == 1
    assert "not a readable picture" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def sample(tmp_path: Path, picture) -> Sample:
    picture(32, 32).save(tmp_path / "a.png")
    return Sample(tmp_path / "a.png", "a red circle moves up", 5)


def test_a_busy_server_is_asked_again_and_a_refusal_is_told(tmp_path, picture):
    answers = [httpx.Response(429, headers={"Retry-After": "0"}), httpx.Response(200, content=b"video")]
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.read())
        return answers.pop(0)

    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://server") as client:
        assert post_animate(client, sample(tmp_path, picture)) == b"video"
        assert b'name="seed"\r\n\r\n5\r\n' in seen[0]
        answers.append(httpx.Response(400, json={"error": "prompt: too long"}))
        with pytest.raises(StillmotionError, match=r"a\.png: the server answered 400: .*too long"):
            post_animate(client, sample(tmp_path, picture))


@pytest.mark.slow
def test_a_server_that_cannot_start_is_told_with_its_last_words(tmp_path):
    with pytest.raises(StillmotionError, match="the server ended with"), serving("animator:none", 0, tmp_path / "log"):
        pytest.fail("it is no server")


def clip(path: Path):
    return decode(path.read_bytes())


@pytest.mark.timeout(900)
def test_a_demo_whose_student_falls_short_serves_what_is_shipped_and_fails(tmp_path, picture, capsys):
    """Notebooks that train nothing stand for those of the project, which take minutes."""
    source = (
        "from pipeline.errors import StillmotionError\nraise StillmotionError('psnr_to_teacher_db: 1, at least 30')"
    )
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        cells=[
            nbformat.v4.new_code_cell('run_folder = ""', metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(source),
        ],
    )
    nbformat.write(book, tmp_path / "short.ipynb")
    (tmp_path / "own.yaml").write_text("title: Short\nnotebooks: .\nstages: [{notebook: short}]\n")
    own = sample(tmp_path, picture)
    arguments = ["--preset", str(tmp_path / "own.yaml"), "--runs", str(tmp_path / "runs")]
    assert main(["demo", "--image", str(own.path), "--prompt", own.prompt, *arguments]) == 1
    said = capsys.readouterr().err
    folder = (tmp_path / "runs" / "latest").resolve()
    assert "psnr_to_teacher_db: 1, at least 30" in said
    assert f"report  {folder / 'report.html'}" in said
    assert "STILLMOTION_MODEL=" in said.splitlines()[-1]
    assert len(clip(folder / "demo" / "a-shipped.mp4")) == 17
    assert len(list((folder / "demo").glob("*.mp4"))) == 1 + len(read_samples())
    assert (folder / "report.html").read_text().count("data:video/mp4") == 1 + len(read_samples())
    address = next(line.split()[-1] for line in said.splitlines() if line.endswith("/ui"))
    with pytest.raises(httpx.TransportError):
        httpx.get(address, timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_serves_a_persons_picture_and_stops_the_server(teacher_folder, tmp_path, picture, capsys):
    own = sample(tmp_path, picture)
    arguments = ["--teacher", str(teacher_folder), "--runs", str(tmp_path / "runs"), "--json"]
    small = ["-p", "pictures", "1", "-p", "evaluation_clips", "1", "-p", "updates", "2", "-p", "student_steps", "2"]
    small += ["-p", "gates", ""]
    assert main(["demo", "--image", str(own.path), "--prompt", own.prompt, *arguments, *small]) == 0
    said = capsys.readouterr()
    folder = (tmp_path / "runs" / "latest").resolve()
    clips = sorted((folder / "demo").glob("*.mp4"))
    assert len(clips) == 2 + len(read_samples())
    assert len(clip(folder / "demo" / "a-shipped.mp4")) == 17
    assert len(clip(folder / "demo" / "a.mp4")) == 4
    assert (folder / "report.html").read_text().count("data:video/mp4") == len(clips)
    assert os.fspath(folder / "report.html") in said.out
