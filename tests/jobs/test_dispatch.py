"""What is sent when: order, room, retries, stores that go away. A stand-in serves; a test allows its steps."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import sqlite3
import sys

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jobs.pace import Pace
from jobs.upstream import Upstream

from ..ports import free_port
from .conftest import served, until
from .standin import event


def test_interactive_jobs_go_before_batch_jobs_that_came_first(stand_in, service):
    # One is computed and one more sent at a time: of two that are sent, either may meet the server first. What is
    # refused is not sent again before a job has ended.
    server = stand_in(step_s=None, retry_after=300)
    client = service(server.url, upstream_key="sk-edge", most_in_flight=2)
    running = client.submit("first")
    until(lambda: server.count("begin") == 1, "it is computed")
    batch = [client.submit("b", priority="batch") for _ in range(3)]
    until(lambda: client.metric('stillmotion_jobs_refused_total{reason="busy"}') == 1, "the first of them is refused")
    interactive = [client.submit("i") for _ in range(3)]
    server.allow(100)
    client.wait(*batch, *interactive)
    # What was sent when there seemed to be room, and refused, keeps its place within its class.
    assert server.order() == [running, *interactive, *batch]
    assert server.requests[batch[0]]["headers"]["x-job-class"] == "batch"
    assert server.requests[batch[0]]["headers"]["x-api-key"] == "sk-edge"


def test_a_refusal_is_no_attempt_and_the_wait_is_what_the_server_asked_for(stand_in, service):
    server = stand_in(retry_after=30)
    server.refuse = Response(status_code=429, headers={"Retry-After": "1"})
    client = service(server.url, most_attempts=1)
    video = client.submit()
    until(lambda: client.metric('stillmotion_jobs_refused_total{reason="busy"}') >= 2, "it was refused twice")
    server.refuse = None
    client.wait(video)


def test_nobody_there_and_a_server_that_is_loading_are_waited_for(stand_in, service):
    server = stand_in()
    server.refuse = JSONResponse({"error": "the server is loading", "code": "loading"}, 503, {"Retry-After": "1"})
    client = service(server.url)
    video = client.submit()
    until(lambda: client.metric('stillmotion_jobs_refused_total{reason="unavailable"}') >= 1, "it was refused")
    assert client.status(video) in ("queued", "in_progress")
    server.refuse = None
    client.wait(video)


def test_a_service_that_describes_no_model_is_reached_and_decides_itself_what_it_takes(service):
    asked = []

    async def animate(request):
        asked.append(dict(await request.form()))
        return Response(status_code=400)

    with served(Starlette(routes=[Route("/animate/stream", animate, methods=["POST"])])) as url:
        client = service(url)
        assert client.http.get("/ui/about.json").json()["state"] == "ready"
        video = client.submit(size="3x3", seconds="99")
        client.wait(video, status="failed")
        assert client.get(video).json()["error"]["code"] == "upstream_400"
    assert (asked[0]["size"], asked[0]["seconds"]) == ("3x3", "99")
    assert service(url, data=client.data.with_name("o")).http.get("/ui/about.json").json()["state"] == "unreachable"


def test_an_upstream_that_is_set_up_wrongly_costs_no_job(stand_in, service):
    server = stand_in()
    client = service(server.url, most_attempts=1)
    videos = []
    for number, server.refuse in enumerate(
        [
            JSONResponse({"error": "give an API key", "code": "unauthorized"}, 401),
            JSONResponse({"error": "there is nothing at this path", "code": "not_found"}, 404),
            Response("<html>sign in</html>", 200, media_type="text/html"),
            Response(status_code=307, headers={"Location": "https://elsewhere.example/animate/stream"}),
        ]
    ):
        videos.append(client.submit())
        refused = 'stillmotion_jobs_refused_total{reason="unavailable"}'
        until(lambda number=number, refused=refused: client.metric(refused) > number, "it was refused")
        assert client.http.get("/ui/about.json").json()["state"] == "unreachable"
        assert {client.status(video) for video in videos} == {"queued"}
    server.refuse = None
    client.wait(*videos)


def test_a_server_that_fails_at_a_job_is_given_it_again_and_one_that_refuses_it_is_not(stand_in, service):
    server = stand_in()
    client = service(server.url, most_attempts=5)
    server.refuse = JSONResponse({"error": "seed: 5 is bad", "code": "out_of_range"}, 400)
    client.wait(client.submit(), status="failed")
    server.refuse = JSONResponse({"error": "its log says why", "code": "internal"}, 500)
    video = client.submit()
    until(lambda: client.metric("stillmotion_jobs_lost_total") >= 1, "it failed")
    server.refuse = None
    client.wait(video)


def stream(*events):
    """An answer of events, each written as it is given."""
    return Response(b"".join(events), media_type="text/event-stream")


BEGIN = event("start", {"steps": 1})
VIDEO = {"data": base64.b64encode(b"video").decode(), "media_type": "video/mp4", "format": "mp4"}


UNREADABLE = [
    stream(BEGIN, b"event: result\ndata: {\n\n"),
    stream(BEGIN, b"event: step\ndata: [1]\n\n"),
    stream(BEGIN, b'event: step\ndata: {"step": 1e999, "steps": 1}\n\n'),
    stream(BEGIN, event("step", {"step": 1})),
    stream(BEGIN, b"event: step\ndata: " + b"[" * 100_000 + b"\n\n"),
    stream(BEGIN, event("result", VIDEO | {"data": ""})),
    stream(BEGIN, event("result", VIDEO | {"data": "&&&"})),
    stream(BEGIN),
    stream(b"<html>"),
]


def test_a_stream_that_cannot_be_read_is_a_lost_computation_and_no_traceback(stand_in, service, caplog):
    server = stand_in()
    client = service(server.url, most_attempts=1)
    for server.refuse in UNREADABLE:
        video = client.submit()
        client.wait(video, status="failed")
        assert client.get(video).json()["error"]["code"] == "lost"
    assert not [record for record in caplog.records if record.exc_info]


def test_whatever_a_server_says_of_a_video_is_kept_and_shown(stand_in, service):
    server = stand_in()
    odd = {"seed": 'ü"\r\nX-Odd: 1', "format": "../mp4", "media_type": "text/html", "left": 1, "deep": {"a": [1]}}
    written = json.dumps(VIDEO | odd | {"nul": "\x00\ud800"})[:-1] + ', "no": NaN, "inf": 1e999}'
    server.refuse = stream(BEGIN, f"event: result\ndata: {written}\n\n".encode())
    client = service(server.url)
    video = client.submit()
    client.wait(video)
    result = client.http.get("/v1/videos").json()["data"][0]["result"]
    assert (result["no"], result["inf"], result["nul"], result["left"]) == (None, None, "??", 1)
    content = client.http.get(f"/v1/videos/{video}/content")
    assert (content.content, content.headers["content-type"]) == (b"video", "application/octet-stream")
    assert "x-odd" not in content.headers


def test_seconds_that_no_server_could_tell_when_they_were_submitted_become_frames_later(stand_in, service):
    port = free_port()
    client = service(f"http://127.0.0.1:{port}")
    right, wrong = client.submit(seconds="1"), client.submit(seconds="99")
    server = stand_in(port=port)
    client.wait(right)
    client.wait(wrong, status="failed")
    assert server.requests[right]["frames"] == "9"
    assert client.get(wrong).json()["error"]["code"] == "out_of_range"
    assert wrong not in server.requests


def test_a_job_that_is_merely_tried_is_shown_as_queued(stand_in, service):
    server = stand_in(step_s=None)
    client = service(server.url)
    client.wait(client.submit(), status="in_progress")
    video, seen = client.submit(), set()
    until(lambda: seen.add(client.status(video)) or server.count("refuse") >= 2, "it was tried twice")
    assert seen == {"queued"}
    server.allow(8)
    client.wait(video)


def test_a_connection_that_breaks_is_tried_again_a_few_times_and_then_said(stand_in, service):
    server = stand_in()
    server.break_at = 2
    client = service(server.url, most_attempts=2)
    video = client.submit()
    client.wait(video, status="failed")
    assert "lost 2 times" in client.get(video).json()["error"]["message"]
    assert server.count("begin") == 2


def test_a_limit_of_time_counts_from_the_start_of_the_computation(stand_in, service):
    server = stand_in(step_s=None)
    client = service(server.url, compute_s=0.5)
    first = client.submit()
    waiting = [client.submit(), client.submit()]
    client.wait(first, *waiting, status="failed")
    assert {client.get(one).json()["error"]["code"] for one in (first, *waiting)} == {"deadline"}
    assert server.count("begin") == 3, "those that waited longer than the limit were computed all the same"


def test_a_database_that_is_held_is_unavailable_and_comes_back(stand_in, service):
    client = service(stand_in().url)
    client.wait(client.submit())
    with contextlib.closing(sqlite3.connect(client.data / "jobs.sqlite3", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        answer = client.create()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
        assert answer.headers["retry-after"] == "5"
        assert answer.json()["error"]["message"] == "the database does not answer", "nothing of what is inside"
        assert client.http.get("/v1/videos").status_code == 200, "what is there can be read"
        holder.execute("ROLLBACK")
    client.wait(client.submit())


def test_a_video_that_finds_no_room_on_the_disk_is_kept_until_it_does(stand_in, service, small_disk):
    server = stand_in(step_s=None)
    client = service(server.url, files=small_disk.as_uri())
    video = client.submit()
    client.wait(video, status="in_progress")
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    answer = client.create()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
    assert answer.json()["error"]["message"] == "the store of files has no room"
    server.allow(4)
    until(lambda: server.count("end") == 1, "it is computed")
    assert client.status(video) == "in_progress"
    filler.unlink()
    client.wait(video)
    assert server.count("begin") == 1
    assert client.http.get(f"/v1/videos/{video}/content").status_code == 200


def test_a_picture_is_kept_in_memory_only_until_it_is_sent(stand_in):
    server, data = stand_in(), random.Random(1).randbytes(2**20)
    known, kept = sys.getrefcount(data), []

    async def work():
        upstream = Upstream(server.url, None, 60, 60)
        clip = await upstream.animate(
            {"prompt": "p"}, {"image": data}, {"X-Request-Id": "1"},
            lambda: kept.append(sys.getrefcount(data)), lambda *_: None,
        )  # fmt: skip
        await upstream.close()
        return clip

    assert asyncio.run(work()).data == b"video of p"
    assert kept == [known]


def test_a_store_of_files_that_is_gone_for_long_costs_no_job(stand_in, service):
    server = stand_in()
    client = service(server.url, most_attempts=1)
    server.refuse = Response(status_code=429, headers={"Retry-After": "1"})
    video = client.submit()
    picture = client.data / "files" / video / "image"
    there = picture.rename(picture.with_name("elsewhere"))
    picture.symlink_to("image")  # there is one, and it cannot be read
    server.refuse = None
    until(lambda: client.metric('stillmotion_jobs_refused_total{reason="unavailable"}') >= 1, "it could not be sent")
    assert client.status(video) == "queued"
    there.rename(picture)
    client.wait(video)
    assert server.count("begin") == 1


def test_as_many_are_sent_as_begin_at_once_and_one_at_a_time_after_a_refusal():
    pace, now = Pace(100, random.Random(1)), 0.0
    for number in range(8):
        assert pace.room(now, batch=False)
        pace.sent()
        assert not pace.room(now, batch=True), "batch jobs wait while one has not begun"
        pace.began(0.01)
        assert pace.computing == number + 1
    for _ in range(9):
        pace.sent()
    assert not pace.room(now, batch=False), "nine may wait upstream after eight that did not"
    pace.refused(now, 5.0)
    pace.ended(began=False)
    for _ in range(8):
        pace.ended(began=False)
    assert not pace.room(4.9, batch=False)
    assert pace.room(6.3, batch=False)
    pace.sent()
    assert not pace.room(6.3, batch=False)


def test_the_end_of_a_job_makes_room_at_once_and_a_long_wait_upstream_makes_one_careful():
    pace = Pace(3, random.Random(1))
    pace.sent()
    pace.began(0.0)
    pace.refused(0.0, 60.0)
    assert not pace.room(1.0, batch=False)
    pace.ended(began=True)
    assert pace.room(1.0, batch=False)
    for _ in range(2):
        pace.sent()
        pace.began(30.0)
    pace.sent()
    assert not pace.room(1.0, batch=False), "one waits upstream, and no second one is sent after it"
    pace.began(0.0)
    assert not pace.room(1.0, batch=False), "three is the most"
