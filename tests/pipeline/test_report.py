import re

import numpy as np
import pytest
from PIL import Image

from pipeline.media.video import decode
from pipeline.runs.report import write_report
from pipeline.runs.results import Row, StageFolder, read_result
from pipeline.runs.state import RunState, StageState, reads_of

CLIP = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def run(tmp_path):
    """A run of two stages, of which the second failed."""
    stage = StageFolder(tmp_path, "01_teacher", "The teacher")
    stage.clip("one", "one.png", "a red <circle> moves & stays", CLIP, 8, Image.new("RGB", (600, 400), "red"))
    stage.clip("two", "two.png", "animated picture", CLIP, 8, file_format="webp")
    stage.picture("sheet", "Contact sheet", "one row", Image.new("RGB", (64, 64)))
    stage.row("Whole request", 3.14159, "s", "median of 3", headline=True)
    stage.finish("It works.", {"request_s": 3.14159})
    state = RunState(
        preset="tiny",
        teacher="",
        parameters={},
        command="python -m pipeline run --preset tiny",
        created="2026-01-02T03:04:05+00:00",
        stages=[
            StageState(name="01_teacher", status="done", seconds=61.5),
            StageState(name="04_package", status="failed", error="cell 3: ModelError: <no> store"),
        ],
    )
    state.save(tmp_path)
    return tmp_path


def test_a_report_needs_nothing_from_outside(run):
    page = write_report(run).read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert not re.search(r"url\(\s*['\"]?http|@import|<script|<link", page)
    assert page.count("data:video/webm;base64,") == 1
    assert page.count("data:image/webp;base64,") == 1


def test_words_of_people_are_text_and_not_markup(run):
    page = write_report(run).read_text()
    assert "a red &lt;circle&gt; moves &amp; stays" in page
    assert "<circle>" not in page
    assert "&lt;no&gt; store" in page


def test_a_failed_stage_is_told_with_its_error(run):
    page = write_report(run).read_text()
    assert "not finished" in page
    assert "cell 3: ModelError" in page
    assert "python -m pipeline run --preset tiny" in page
    assert "1:01 min" in page


def test_headlines_open_the_report(run):
    page = write_report(run).read_text()
    assert page.index('<div class="value">3.14 s</div>') < page.index("<section")


def test_clips_in_a_stage_folder_can_be_played_and_its_result_read_back(run):
    result = read_result(run, "01_teacher")
    figure = result.figures[0]
    assert len(decode((run / "01_teacher" / figure.clip).read_bytes())) == 4
    with Image.open(run / "01_teacher" / figure.picture) as picture:
        assert max(picture.size) <= 384
    assert result.metrics == {"request_s": 3.14159}


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "dB", "–"),
        (0.0, "%", "0.0 %"),
        (0.12345, "s", "0.123 s"),
        (3.14159, "s", "3.14 s"),
        (1234.56, "ms", "1,234.6 ms"),
        (12345, "", "12,345"),
        ("animator:1", "", "animator:1"),
    ],
)
def test_figures_are_written_as_people_read_them(value, unit, shown):
    assert Row(name="x", value=value, unit=unit).shown == shown


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_shows_the_report_and_plays_its_clips(run):
    playwright = pytest.importorskip("playwright.sync_api")
    import shutil

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    page_file = write_report(run)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        failed = []
        page.on("requestfailed", lambda request: failed.append(request.url[:60]))
        page.on("console", lambda message: failed.append(message.text))
        page.goto(page_file.as_uri())
        page.wait_for_function("[...document.querySelectorAll('video')].every(v => v.readyState >= 2)")
        broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).length")
        wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        browser.close()
    assert (failed, broken, wide) == ([], 0, False)


def test_two_clips_of_one_name_are_both_kept_and_a_new_attempt_begins_anew(tmp_path):
    for _ in range(2):
        stage = StageFolder(tmp_path, "demo", "Two pictures that are called alike")
        kept = [stage.clip_file("stone", "stone.jpg", "", data, "mp4") for data in (b"one", b"other")]
        assert [path.name for path in kept] == ["stone.mp4", "stone-2.mp4"]
        assert [path.read_bytes() for path in kept] == [b"one", b"other"]


def test_a_stage_depends_on_the_figures_that_it_reads_and_on_nothing_else(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("one")
    first = StageFolder(tmp_path, "first", "First")
    first.finish("", {"number": 3, "judged": {"motion": 0.5, "seconds": 1.0}, "source": str(model)})
    second = StageFolder(tmp_path, "second", "Second")
    assert [second.read("first", name) for name in ("number", "judged.motion", "source")] == [3, 0.5, str(model)]
    assert second.read("none", "number") is None
    assert second.read("first", "number.of.nothing") is None
    keys, before = second.result.reads, [StageState(name="first", digest="one", artefacts={"first.ipynb": "a plot"})]
    read, all_of_it = reads_of(tmp_path, keys, before), reads_of(tmp_path, (), before)
    assert list(all_of_it) == ["first"]

    before = [StageState(name="first", digest="other", artefacts={"first.ipynb": "another plot"})]
    first.finish("", {"number": 3, "judged": {"motion": 0.5, "seconds": 2.0}, "source": str(model)})
    assert reads_of(tmp_path, keys, before) == read
    assert reads_of(tmp_path, (), before) != all_of_it
    first.finish("", {"number": 4, "judged": {"motion": 0.5}, "source": str(model)})
    (model / "weights").write_text("other")
    changed = {key for key, digest in reads_of(tmp_path, keys, before).items() if digest != read[key]}
    assert changed == {"first number", "first source"}
