"""The job service in front of a real server, with a small model of random weights."""

from __future__ import annotations

import contextlib

import httpx
import pytest

from pipeline.commands.demo import jobs_beside
from pipeline.media.video import decode

from ..serving.conftest import packaged_model, server
from .conftest import Client, picture, until

__all__ = ["packaged_model", "server"]

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


def test_openais_package_gets_a_video_of_a_real_model(server, service):
    client = service(server.url)
    video = client.openai.videos.create_and_poll(
        prompt="a red circle moves right", input_reference=("p.png", picture()), seconds="0.5", extra_body={"seed": 3}
    )
    assert (video.status, video.seconds, video.size, video.progress) == ("completed", "0.5", "32x32", 100)
    assert video.result["seed"] == "3"
    assert len(decode(client.openai.videos.download_content(video.id).read())) == 4
    assert "stillmotion" in [one.id for one in client.openai.models.list()]


def test_deleting_a_video_frees_the_gpu_within_a_step(server, service):
    client = service(server.url)
    cancelled = server.metric("stillmotion_cancelled_total")
    for _ in range(20):  # a machine that stalls may finish a clip before it is deleted
        video = client.submit()
        client.until_computed(video, lambda: server.metric("stillmotion_load") == 1)
        client.http.delete(f"/v1/videos/{video}")
        server.wait_until_free()
        if server.metric("stillmotion_cancelled_total") > cancelled:
            break
    assert server.metric("stillmotion_cancelled_total") == cancelled + 1
    done = server.computations()
    assert done.count("begins") == done.count("ended")


def test_what_the_model_cannot_make_is_refused_by_its_own_limits(server, service):
    client = service(server.url)
    answer = client.create(seconds="4")
    assert answer.status_code == 400
    assert "the nearest is 0.5" in answer.json()["error"]["message"]
    assert "is not one of 32x32" in client.create(size="1280x720").json()["error"]["message"]
    server.wait_until_free()


def test_a_demo_has_jobs_beside_its_server(server):
    with jobs_beside(server.url) as url:
        client = Client(url)

        def answers():
            with contextlib.suppress(httpx.TransportError):
                return client.http.get("/readyz").status_code == 200

        until(answers, "the job service answers")
        video = client.openai.videos.create_and_poll(prompt="a star grows", input_reference=("p.png", picture()))
        assert video.status == "completed"
        assert video.result["marks"] == "iptc"
    with pytest.raises(httpx.TransportError):
        client.http.get("/readyz")
