"""kill -9 at every state: no job is lost, none is computed twice beyond what was cut off, nothing is left behind.

What is unavoidable: a computation that is cut off by the death of a process is begun anew, from its first step.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import Counter

import httpx
import pytest

from .conftest import Client, until

SHARED = pytest.param(True, id="postgresql and s3")
STORES = pytest.mark.parametrize("shared", [pytest.param(False, id="sqlite"), SHARED])
STORES_WHERE_THERE_IS_TIME = pytest.mark.parametrize(
    "shared", [pytest.param(False, id="sqlite"), pytest.param(True, id="postgresql and s3", marks=pytest.mark.slow)]
)


@pytest.fixture
def stores(request, shared):
    """Settings and environment of the stores."""
    if not shared:
        return {"options": {}, "environment": {}}
    bucket = request.getfixturevalue("s3")
    options = {"database": request.getfixturevalue("postgres").database(), "files": bucket.url}
    return {"options": options, "environment": bucket.environment}


def start(processes, upstream, stores, port=None):
    jobs = processes.jobs(upstream, port, stores["environment"], **stores["options"])
    return jobs, Client(jobs.url)


def begun(processes, video):
    return Counter(what for what, job in processes.computed if job == video and what != "refuse")


@STORES_WHERE_THERE_IS_TIME
def test_a_job_that_waits_is_there_after_the_service_is_killed(processes, stores):
    gpu = processes.gpu()
    gpu.kill()
    jobs, client = start(processes, gpu.url, stores)
    videos = [client.submit(f"clip {number}") for number in range(3)]
    jobs.kill()
    processes.gpu(port=gpu.port)
    _, client = start(processes, gpu.url, stores)
    client.wait(*videos)
    assert [job for what, job in processes.computed if what == "begin"] == videos


@STORES
def test_a_job_that_is_computed_stops_with_the_service_and_is_begun_anew(processes, stores):
    gpu = processes.gpu()
    processes.hold()
    jobs, client = start(processes, gpu.url, stores)
    video = client.submit()
    until(lambda: client.get(video).json()["progress"] > 0, "a step is done")
    jobs.kill()
    until(lambda: begun(processes, video)["stop"] == 1, "the server has stopped")
    processes.let_go()
    _, client = start(processes, gpu.url, stores)
    client.wait(video)
    assert begun(processes, video) == {"begin": 2, "stop": 1, "end": 1}


def test_a_video_that_is_written_but_not_noted_is_not_computed_again(processes, tmp_path):
    gpu = processes.gpu()
    processes.hold()
    jobs, client = start(processes, gpu.url, {"options": {}, "environment": {}})
    video = client.submit()
    client.wait(video, status="in_progress")
    # The database is held by somebody else from now on: the video is written, its row is not.
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "jobs.sqlite3", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        processes.let_go()
        until((tmp_path / "data" / "files" / video / "video").exists, "the video is written")
        jobs.kill()
        holder.execute("ROLLBACK")
    _, client = start(processes, gpu.url, {"options": {}, "environment": {}})
    client.wait(video)
    assert begun(processes, video) == {"begin": 1, "end": 1}
    assert client.http.get(f"/v1/videos/{video}/content").content.startswith(b"video of")


def test_a_job_is_taken_once_where_the_service_is_killed_before_it_answers(processes, tmp_path):
    gpu = processes.gpu()
    jobs, client = start(processes, gpu.url, {"options": {}, "environment": {}})
    head = {"Idempotency-Key": "order-1"}
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "jobs.sqlite3", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with contextlib.suppress(httpx.TimeoutException):
            client.http.post("/v1/videos", data={"prompt": "p"}, files={"input_reference": ("p", _picture())},
                             headers=head, timeout=1)  # fmt: skip
        jobs.kill()
        holder.execute("ROLLBACK")
    _, client = start(processes, gpu.url, {"options": {}, "environment": {}})
    videos = {client.create("p", headers=head).json()["id"] for _ in range(2)}
    assert len(videos) == 1
    client.wait(*videos)
    assert Counter(what for what, _ in processes.computed)["begin"] == 1


@STORES_WHERE_THERE_IS_TIME
def test_a_killed_gpu_server_loses_no_job(processes, stores):
    gpu = processes.gpu()
    processes.hold()
    _, client = start(processes, gpu.url, stores)
    videos = [client.submit(f"clip {number}") for number in range(2)]
    until(lambda: client.get(videos[0]).json()["progress"] > 0, "a step is done")
    gpu.kill()
    processes.let_go()
    until(lambda: client.status(videos[0]) == "queued", "it is back in the queue")
    processes.gpu(port=gpu.port)
    client.wait(*videos)
    assert begun(processes, videos[0])["end"] == 1
    assert begun(processes, videos[1]) == {"begin": 1, "end": 1}


def test_a_replica_takes_over_what_a_killed_one_left_and_the_other_goes_on(processes, postgres, s3):
    stores = {"options": {"database": postgres.database(), "files": s3.url}, "environment": s3.environment}
    gpu = processes.gpu()
    processes.hold()
    first, one = start(processes, gpu.url, stores)
    videos = [one.submit(f"clip {number}") for number in range(3)]
    until(lambda: begun(processes, videos[0])["begin"] == 1, "it is computed")
    _, other = start(processes, gpu.url, stores)
    first.kill()
    until(lambda: begun(processes, videos[0])["stop"] == 1, "the server has stopped")
    processes.let_go()
    other.wait(*videos)
    counts = {video: begun(processes, video)["end"] for video in videos}
    assert counts == dict.fromkeys(videos, 1)
    assert begun(processes, videos[0])["begin"] == 2


@pytest.mark.slow  # a lease has to lapse
def test_a_database_that_was_gone_for_longer_than_a_lease_costs_no_computation(processes, postgres, s3):
    stores = {"options": {"database": postgres.database(), "files": s3.url}, "environment": s3.environment}
    gpu = processes.gpu()
    processes.hold()
    _, one = start(processes, gpu.url, stores)
    start(processes, gpu.url, stores)
    video = one.submit()
    until(lambda: begun(processes, video)["begin"] == 1, "it is computed")
    postgres.stop()
    try:
        time.sleep(4)  # a lease is of 3 s
    finally:
        postgres.start()
    until(lambda: one.http.get("/readyz").status_code == 200, "it is back")
    time.sleep(2)
    processes.let_go()
    one.wait(video)
    assert begun(processes, video) == {"begin": 1, "end": 1}


def test_a_job_that_another_replica_computes_is_stopped_by_deleting_it(processes, postgres, s3):
    stores = {"options": {"database": postgres.database(), "files": s3.url}, "environment": s3.environment}
    gpu = processes.gpu()
    processes.hold()
    _, one = start(processes, gpu.url, stores)
    _, other = start(processes, gpu.url, stores)
    video = one.submit()
    until(lambda: begun(processes, video)["begin"] == 1, "it is computed")
    assert other.http.delete(f"/v1/videos/{video}").json()["computation"] == "stops at its next step"
    until(lambda: begun(processes, video)["stop"] == 1, "it has stopped")
    until(lambda: s3.names() == [], "its files are gone")


def test_a_job_that_was_deleted_when_the_service_was_killed_does_not_come_back(processes, tmp_path):
    gpu = processes.gpu()
    processes.hold()
    jobs, client = start(processes, gpu.url, {"options": {}, "environment": {}})
    video = client.submit()
    until(lambda: client.get(video).json()["progress"] > 0, "a step is done")
    with contextlib.suppress(httpx.TransportError):
        client.http.delete(f"/v1/videos/{video}")
    jobs.kill()
    _, client = start(processes, gpu.url, {"options": {}, "environment": {}})
    assert client.get(video).status_code == 404
    until(lambda: list((tmp_path / "data" / "files").glob("video_*")) == [], "its files are gone")
    assert begun(processes, video)["begin"] == 1


@pytest.mark.slow  # what the killed one had begun is its own for a minute
def test_a_webhook_arrives_although_the_service_was_killed_before_it_could(processes):
    from .conftest import SECRET
    from .receiver import Receiver

    gpu = processes.gpu()
    stores = {"options": {"webhook_secret": SECRET, "private_addresses": True}, "environment": {}}
    with Receiver(500, 204) as receiver:
        jobs, client = start(processes, gpu.url, stores)
        video = client.submit(webhook_url=receiver.url)
        until(receiver.first, "it was sent once, and refused")
        jobs.kill()
        start(processes, gpu.url, stores)
        until(lambda: len(receiver.received) >= 2, "it was sent again")
    ids = {headers["webhook-id"] for headers, _ in receiver.received}
    assert len(ids) == 1
    assert all(video in body for _, body in receiver.received)


def test_a_second_service_in_the_same_folder_is_refused_in_one_line(processes, tmp_path):
    jobs = processes.jobs("http://127.0.0.1:9")
    with pytest.raises(AssertionError, match="another job service uses"):
        processes.jobs("http://127.0.0.1:9", data=tmp_path / "data")
    assert jobs.stop() == 0


def _picture():
    from .conftest import picture

    return picture()
