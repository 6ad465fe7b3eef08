"""What is sent when: order, room, retries, stores that go away. A stand-in serves; a test allows its steps."""

from __future__ import annotations

import contextlib
import random
import sqlite3

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response

from jobs.pace import Pace

from .conftest import served, until


def test_interactive_jobs_go_before_batch_jobs_that_came_first(stand_in, service):
    server = stand_in(step_s=None)
    client = service(server.url, upstream_key="sk-edge")
    running = client.submit("first")
    until(lambda: server.count("begin") == 1, "it is computed")
    batch = [client.submit("b", priority="batch") for _ in range(3)]
    interactive = [client.submit("i") for _ in range(3)]
    server.allow(100)
    client.wait(*batch, *interactive)
    # The second was sent when there seemed to be room, and refused: it keeps its place within its class.
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
    with served(Starlette()) as url:
        client = service(url)
        assert client.http.get("/ui/about.json").json()["state"] == "ready"
        video = client.submit(size="3x3", seconds="99")
        client.wait(video, status="failed")
        assert client.get(video).json()["error"]["code"] == "upstream_404"
    assert service(url, data=client.data.with_name("o")).http.get("/ui/about.json").json()["state"] == "unreachable"


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
    server.allow(4)
    until(lambda: server.count("end") == 1, "it is computed")
    assert client.status(video) == "in_progress"
    filler.unlink()
    client.wait(video)
    assert server.count("begin") == 1
    assert client.http.get(f"/v1/videos/{video}/content").status_code == 200


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
