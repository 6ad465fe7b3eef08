"""The page at /ui in a real browser."""

import re
import shutil
from pathlib import Path

import pytest

from .conftest import LIMIT_S

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (on Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


# What the page says in between is there for a moment, which a test that stalls would miss.
REMEMBER = """() => {
    window.said = [];
    const status = document.getElementById("status");
    new MutationObserver(() => said.push(status.textContent)).observe(status, {childList: true});
}"""
STOP_AT_THE_SECOND_STEP = """() => {
    const stop = () => document.querySelector("#strip i.done:nth-child(2)") && document.getElementById("stop").click();
    new MutationObserver(stop).observe(document.getElementById("strip"), {subtree: true, attributes: true});
}"""
BOTH = pytest.mark.parametrize("page", [(1280, 860), (390, 844)], ids=["desktop", "phone"], indirect=True)


@pytest.fixture
def page(browser, server, request):
    """The page, opened; a test fails on anything that the browser complains of."""
    width, height = getattr(request, "param", (1280, 860))
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(1000 * LIMIT_S)
    page = context.new_page()
    complaints, requested = [], []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("request", lambda sent: requested.append(sent.url))
    page.goto(server.url)
    page.wait_for_selector("#about:has-text('steps')")
    page.evaluate(REMEMBER)
    page.complaints = complaints
    yield page
    context.close()
    assert [url for url in requested if not url.startswith((server.url, "blob:", "data:"))] == []
    server.wait_until_free()


@BOTH
def test_a_picture_becomes_a_playing_video_that_can_be_downloaded(page):
    page.click("#samples button:nth-of-type(1)")
    page.wait_for_selector("#preview:not([hidden])")
    assert page.input_value("#prompt") == "a red circle moves up"
    page.click("#go")
    page.wait_for_selector("#outcome:not([hidden])")
    assert any(text.startswith("Step ") for text in page.evaluate("said"))
    page.wait_for_function("document.querySelector('video').currentTime > 0")
    video = page.evaluate("(({loop, videoWidth}) => ({loop, videoWidth}))(document.querySelector('video'))")
    assert video["loop"]
    assert video["videoWidth"] >= 256
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename.endswith(".mp4")
    assert Path(download.value.path()).stat().st_size > 1000
    assert page.complaints == []


@BOTH
def test_nothing_is_wider_than_the_screen(page):
    page.click("summary")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_each_control_has_a_name(page):
    page.click("summary")
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select, textarea, a')].filter((e) => e.checkVisibility()
           && !(e.textContent.trim() || e.labels?.length || e.ariaLabel || e.getAttribute('aria-labelledby')))
           .map((e) => e.outerHTML)"""
    )
    assert nameless == []


def test_what_is_missing_is_said(page):
    page.click("#go")
    assert "picture" in page.text_content("#problem")
    page.click("#samples button:nth-of-type(2)")
    page.wait_for_selector("#preview:not([hidden])")
    page.fill("#prompt", " ")
    page.click("#go")
    assert "move" in page.text_content("#problem")


def test_a_prompt_that_is_read_in_part_is_said_beside_the_video(page):
    page.click("#samples button:nth-of-type(1)")
    page.wait_for_selector("#preview:not([hidden])")
    page.fill("#prompt", "a red circle on the wide blue sea, far away, moves up")
    page.click("#go")
    page.wait_for_selector("#outcome:not([hidden])")
    assert "The prompt is too long: the model read the first 18 of" in page.text_content("#status")


def test_an_error_of_the_server_is_shown_as_it_says_it(page):
    page.click("#samples button:nth-of-type(1)")
    page.wait_for_selector("#preview:not([hidden])")
    page.click("summary")
    page.fill("#frames", "99")
    page.click("#go")
    page.wait_for_selector("#problem:not([hidden])")
    assert "frames: 99 is outside 2 to 4" in page.text_content("#problem")


def test_a_busy_server_is_tried_again_and_the_page_says_so(page):
    refused = []

    def answer(route):
        # The first answer is that of a busy server. A real one is busy for a moment, which the page may miss.
        if refused:
            route.continue_()
        else:
            refused.append(route.request.url)
            route.fulfill(status=429, headers={"Retry-After": "1"})

    page.route("**/animate/stream", answer)
    page.click("#samples button:nth-of-type(1)")
    page.wait_for_selector("#preview:not([hidden])")
    page.click("#go")
    page.wait_for_selector("#outcome:not([hidden])")
    assert len(refused) == 1
    assert any(re.search(r"busy.* Trying again in \d s", text) for text in page.evaluate("said"))


def test_a_person_can_stop_and_the_slot_is_free_again(page, server):
    page.click("#samples button:nth-of-type(1)")
    page.wait_for_selector("#preview:not([hidden])")
    page.evaluate(STOP_AT_THE_SECOND_STEP)
    page.click("#go")
    page.wait_for_selector("#status:has-text('Stopped')")
    server.wait_until_free()
