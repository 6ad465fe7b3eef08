"""The page at /ui in a real browser, on a desktop and on a phone."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.media.video import encode

from .conftest import LIMIT_S, picture, served, until

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (on Debian: apt-get install chromium)"),
]
CLIP = encode(np.tile(np.arange(0, 240, 15, dtype=np.uint8)[:, None, None, None], (1, 64, 64, 3)), 8, "mp4")
BOTH = pytest.mark.parametrize("size", [(1280, 860), (390, 844)], ids=["desktop", "phone"])
PICTURES = [
    {"name": f"{name}.png", "mimeType": "image/png", "buffer": picture(colour=colour)}
    for name, colour in [("red", (200, 0, 0)), ("blue", (0, 0, 200)), ("green", (0, 200, 0))]
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens the page; a test fails on anything that the browser complains of."""
    contexts, complaints, requested = [], [], []

    def opened(url, size=(1280, 860), path="/ui/", **options):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        context.set_default_timeout(1000 * 15)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda sent: requested.append((url, sent.url)))
        page.goto(url + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
    assert [one for url, one in requested if not one.startswith((url, "blob:", "data:"))] == []


def holds(page, condition):
    """Wait until an expression is true; the page's policy forbids what Playwright's own waiting does."""
    end = time.monotonic() + LIMIT_S
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def submit(page, *pictures, prompt="a red circle moves right"):
    page.set_input_files("#image", list(pictures))
    page.fill("#prompt", prompt)
    page.click("#go")


@BOTH
def test_several_pictures_are_queued_computed_and_there_after_a_reload(stand_in, service, open_page, size):
    server = stand_in(step_s=None, clip=CLIP)
    client = service(server.url)
    page = open_page(client.url, size)
    submit(page, *PICTURES)
    holds(page, "document.querySelectorAll('.clip').length == 3")
    server.allow(2)
    page.wait_for_selector(".clip[data-status=in_progress] [aria-valuenow='50']")
    page.reload()
    holds(page, "document.querySelectorAll('.clip').length == 3")
    page.wait_for_selector(".clip[data-status=in_progress] [aria-valuenow='50']")
    server.allow(10)
    holds(page, "document.querySelectorAll('.clip[data-status=completed]').length == 3")
    holds(page, "document.querySelector('.clip video')?.currentTime > 0")
    facts = page.text_content(".clip dl")
    for words in ("Seed7", "Length2.12 s", "C2PA manifest, signed; IPTC digital source type"):
        assert words in facts
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than the screen"
    with page.expect_download() as download:
        page.click(".clip a.button")
    assert download.value.suggested_filename == "animation-7.mp4"
    assert Path(download.value.path()).read_bytes() == CLIP


def test_a_clip_is_run_again_with_a_change_and_compared(stand_in, service, open_page):
    server = stand_in(clip=CLIP)
    client = service(server.url)
    client.wait(client.submit("a blue square", image=PICTURES[1]["buffer"], seed="5", frames="9", priority="batch"))
    page = open_page(client.url)
    page.click("text=Run again")
    page.wait_for_selector("#chosen img")
    assert page.input_value("#prompt") == "a blue square"
    assert (page.input_value("#option-seed"), page.input_value("#option-frames")) == ("5", "9")
    assert page.is_checked("#batch")
    page.fill("#option-seed", "6")
    page.click("#go")
    holds(page, "document.querySelectorAll('.clip[data-status=completed]').length == 2")
    newest = server.requests[server.order()[-1]]
    assert (newest["seed"], newest["frames"], newest["prompt"]) == ("6", "9", "a blue square")
    for button in page.query_selector_all("text=Compare"):
        button.click()
    holds(page, "document.querySelectorAll('#pair video').length == 2")
    assert "seed 6" in page.text_content("#pair")
    page.click("#compare-play")
    page.click("#compare-close")
    assert not page.is_visible("#compare")


def test_all_is_done_with_the_keyboard_and_told_to_a_screen_reader(stand_in, service, open_page):
    server = stand_in(step_s=None, clip=CLIP)
    client = service(server.url)
    page = open_page(client.url)
    page.set_input_files("#image", PICTURES[:2])
    page.focus("#chosen li:nth-child(2) button")
    page.keyboard.press("Enter")
    holds(page, "document.querySelectorAll('#chosen li').length == 1")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Leave out red.png"
    page.focus("#prompt")
    page.keyboard.type("a star grows")
    page.keyboard.press("Enter")
    page.wait_for_selector(".clip[data-status=in_progress]")
    page.focus(".clip button")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Stop and delete: a star grows"
    page.keyboard.press("Enter")
    page.wait_for_selector("#empty:not([hidden])")
    assert "Stopped" in page.text_content("#said")
    until(lambda: server.count("stop") == 1, "the server has stopped")
    page.click("summary")
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select, textarea, a')].filter((e) => e.checkVisibility()
           && !(e.textContent.trim() || e.labels?.length || e.ariaLabel || e.getAttribute('aria-labelledby')))
           .map((e) => e.outerHTML)"""
    )
    assert nameless == []


def test_a_busy_fleet_a_missing_one_and_a_missing_service_are_said_in_words(stand_in, service, open_page):
    server = stand_in(clip=CLIP)
    server.refuse = Response(status_code=429, headers={"Retry-After": "30"})
    client = service(server.url)
    page = open_page(client.url)
    submit(page, PICTURES[0])
    page.wait_for_selector("#state[data-state=busy]:has-text('All GPUs are busy')")
    assert "Waiting for a GPU" in page.text_content(".clip .status")
    lonely = open_page(service("http://127.0.0.1:9", data=client.data.with_name("other")).url)
    lonely.wait_for_selector("#state[data-state=unreachable]:has-text('No GPU server answers')")
    lonely.route("**/about.json", lambda route: route.abort())
    lonely.wait_for_selector("#state[data-state=gone]:has-text('What was submitted is kept')")


def test_what_is_missing_or_refused_is_said_beside_the_form(stand_in, service, open_page):
    client = service(stand_in(clip=CLIP).url)
    page = open_page(client.url)
    page.wait_for_selector("#options label", state="attached")
    page.click("#go")
    assert "Choose a picture" in page.text_content("#problem")
    page.set_input_files("#image", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"x"})
    assert "a.txt is not a PNG" in page.text_content("#problem")
    submit(page, {"name": "b.png", "mimeType": "image/png", "buffer": b"not a picture"})
    page.wait_for_selector("#problem:has-text('not a PNG, JPEG or WebP picture')")
    page.click("#chosen button")
    page.click("summary")
    page.fill("#option-frames", "99")
    submit(page, PICTURES[0])
    page.wait_for_selector("#problem:has-text('outside 1 to 49')")


def test_a_full_queue_is_waited_for_and_the_picture_is_sent_once(stand_in, service, open_page):
    server = stand_in(step_s=None, clip=CLIP)
    client = service(server.url, most_queued=1)
    client.wait(client.submit(), status="in_progress")
    client.submit()
    page = open_page(client.url)
    submit(page, PICTURES[0], prompt="mine")
    page.wait_for_selector("#sending:has-text('The queue is full. Trying again in')")
    server.allow(50)
    page.wait_for_selector(".clip[data-status=completed]:has-text('mine')")
    assert [server.requests[job]["prompt"] for job in server.order()].count("mine") == 1


def test_where_keys_are_needed_the_page_asks_for_one_and_keeps_it_over_a_reload(stand_in, service, open_page):
    keys = [{"name": "ann", "sha256": hashlib.sha256(b"sk-ann").hexdigest()}]
    client = service(stand_in(clip=CLIP).url, key="sk-ann", keys=keys)
    client.wait(client.submit("a clip of ann"))
    page = open_page(client.url)
    page.fill("#key", "wrong")
    page.click("#key-form button")
    page.wait_for_selector("#problem:has-text('key of this service')")
    page.fill("#key", "sk-ann")
    page.click("#key-form button")
    page.wait_for_selector(".clip:has-text('a clip of ann')")
    page.reload()
    holds(page, "document.querySelector('.clip video')?.currentTime > 0")


NOTHING_KEPT = (
    "Object.defineProperty(window, 'sessionStorage', {get() { throw new DOMException('no', 'SecurityError'); }});"
)


def test_a_browser_that_keeps_nothing_shows_what_clients_wrote_as_text_and_says_when_a_quota_ends(
    stand_in, service, open_page
):
    keys = [{"name": "ann", "sha256": hashlib.sha256(b"sk-ann").hexdigest(), "per_day": 2}]
    server = stand_in(clip=CLIP)
    client = service(server.url, key="sk-ann", keys=keys)
    odd = "<img src=x onerror=alert(1)></h3><script>alert(2)</script>"
    client.wait(client.submit(odd))
    page = open_page(client.url)
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    page.add_init_script(NOTHING_KEPT)
    page.reload()
    page.fill("#key", "sk-ann")
    page.click("#key-form button")
    holds(page, "document.querySelector('.clip video')?.currentTime > 0")
    assert page.text_content(".clip h3") == odd
    with page.expect_download() as download:
        page.click(".clip a.button")
    assert Path(download.value.path()).read_bytes() == CLIP
    submit(page, {**PICTURES[0], "name": f"{odd}.png"}, PICTURES[1])
    page.wait_for_selector("#problem:has-text('its limit of 2 jobs a day. Come back in 24 hours.')")


def test_an_answer_that_is_no_answer_is_said_and_what_fails_later_breaks_nothing(stand_in, service, open_page):
    client = service(stand_in(clip=CLIP).url)
    videos = [client.submit() for _ in range(21)]
    client.wait(*videos)
    page = open_page(client.url)
    page.wait_for_selector("#older:not([hidden])")
    page.route("**/v1/videos?*", lambda route: route.fulfill(body="<html>sign in to this network</html>"))
    page.click("#older")
    page.wait_for_selector("#state[data-state=gone]")
    page.unroute("**/v1/videos?*")
    page.wait_for_selector("#state", state="hidden")
    holds(page, "document.querySelectorAll('.clip').length == 21")


@BOTH
def test_the_fleet_shows_regions_shares_and_why_requests_were_moved(stand_in, service, open_page, size):
    regions = {
        name: {"gpus": 4, "gpus_ready": 3, "gpus_missing": 1, "load": 0.9, "waiting": 5, "demand_rps": 1.5,
               "assigned_rps": 1.2, "capacity_rps": 2.0, "drained": False, "stale": False, "edge_gone": False,
               "burst": ""}
        for name in ("us-east", "eu-west")
    }  # fmt: skip
    move = {"from": "us-east", "to": "eu-west", "source": "us-east", "rps": 0.3, "ring": 1, "why": "it is too hot"}
    status = {"version": 7, "generated_at": "2026-01-02T03:04:05Z", "interval_s": 2, "failure": "", "frozen": "",
              "regions": regions, "shares": {"us-east": {"us-east": 0.8, "eu-west": 0.2}, "eu-west": {"eu-west": 1}},
              "moves": [move]}  # fmt: skip

    async def answer(_):
        return JSONResponse(status)

    with served(Starlette(routes=[Route("/status.json", answer)])) as control:
        client = service(stand_in().url, control=control)
        page = open_page(client.url, size)
        page.click("#to-fleet")
        page.wait_for_selector("#regions li:nth-child(2)")
        assert "3 of 4 ready" in page.text_content("#regions")
        assert "80 %" in page.text_content("#table")
        assert "it is too hot" in page.text_content("#moves")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.click("text=Animate")
        page.wait_for_selector("#form")
    assert client.http.get("/ui/fleet.json").status_code in (200, 503)
    assert service(client.url, data=client.data.with_name("o")).http.get("/ui/fleet.json").status_code == 404
