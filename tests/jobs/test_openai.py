"""The `openai` package against the service: what an application that has it can do."""

from __future__ import annotations

import warnings

import openai
import pytest

from .conftest import SECRET, data_url, picture, until

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


def test_a_video_is_created_polled_downloaded_listed_and_deleted(stand_in, service):
    client = service(stand_in().url).openai
    video = client.videos.create_and_poll(prompt="a red circle", input_reference=("p.png", picture()), seconds="2")
    assert (video.status, video.progress, video.seconds, video.size) == ("completed", 100, "2.12", "auto")
    assert video.expires_at > video.completed_at >= video.created_at
    assert client.videos.download_content(video.id).read() == b"video of a red circle"
    thumbnail = client.videos.download_content(video.id, variant="thumbnail")
    assert thumbnail.response.headers["content-type"] == "image/webp"
    assert [one.id for one in client.videos.list()] == [video.id]
    deleted = client.videos.delete(video.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (video.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_a_model_is_known_by_its_names_and_what_the_service_has_not_is_said(stand_in, service):
    client = service(stand_in().url).openai
    assert [one.id for one in client.models.list()] == ["stillmotion", "standin:1"]
    assert client.models.retrieve("standin:1").id == "standin:1"
    with pytest.raises(openai.NotFoundError, match=r"'sora-2' is not one of stillmotion, standin:1"):
        client.models.retrieve("sora-2")
    with pytest.raises(openai.NotFoundError, match="edits: not of this service"):
        client.videos.edit(prompt="p", video=("clip.mp4", b"video"))


def test_pages_of_a_list_join_without_a_gap(stand_in, service):
    client = service(stand_in().url)
    made = [client.submit(f"clip {number}") for number in range(5)]
    client.wait(*made)
    assert [one.id for one in client.openai.videos.list(limit=2)] == made[::-1]
    assert [one.id for one in client.openai.videos.list(limit=2, order="asc")] == made


def test_a_picture_may_be_a_data_address_in_a_form_and_in_json(stand_in, service):
    client = service(stand_in().url)
    # The package itself takes files alone, and writes this one as `input_reference[image_url]`.
    reference = {"input_reference": {"image_url": data_url()}}
    first = client.openai.videos.create(prompt="a circle", extra_body=reference)
    again = client.http.post("/v1/videos", json={"prompt": "a circle", "input_reference": data_url()}).json()
    nested = {"prompt": "a circle", "input_reference": {"image_url": data_url()}, "seed": 5}
    third = client.http.post("/v1/videos", json=nested).json()
    client.wait(first.id, again["id"], third["id"])
    assert client.get(third["id"]).json()["result"]["seed"] == "5"


def test_progress_is_in_per_cent_of_the_steps_and_says_when_to_ask_again(stand_in, service):
    server = stand_in(step_s=None)
    client = service(server.url)
    video = client.submit()
    client.wait(video, status="in_progress")
    server.allow(3)
    until(lambda: client.get(video).json()["progress"] == 75, "three of four steps are done")
    assert 100 <= int(client.get(video).headers["openai-poll-after-ms"]) <= 10_000
    server.allow(1)
    client.wait(video)
    assert "openai-poll-after-ms" not in client.get(video).headers


def test_deleting_a_video_that_is_computed_stops_it_at_the_next_step_and_says_so(stand_in, service):
    server = stand_in(step_s=None)
    client = service(server.url)
    video = client.submit()
    until(lambda: server.count("begin") == 1, "it is computed")
    client.wait(video, status="in_progress")
    answer = client.http.delete(f"/v1/videos/{video}").json()
    assert answer["deleted"]
    assert answer["computation"] == "stops at its next step"
    until(lambda: server.count("stop") == 1 and not server.busy, "the server has stopped")
    assert client.get(video).status_code == 404
    until(lambda: client.metric('stillmotion_jobs_finished_total{outcome="deleted"}') == 1, "it is counted")
    server.allow(4)
    client.wait(client.submit())


def test_a_remix_takes_the_picture_and_the_settings_of_the_first_video(stand_in, service):
    server = stand_in()
    client = service(server.url)
    first = client.submit("a red circle", seed="5", frames="9")
    client.wait(first)
    second = client.openai.videos.remix(first, prompt="a blue circle")
    assert second.remixed_from_video_id == first
    client.wait(second.id)
    asked = server.requests[second.id]
    assert (asked["prompt"], asked["frames"], "seed" in asked) == ("a blue circle", "9", False)


def test_a_webhook_is_checked_by_openais_own_verification(stand_in, service):
    from .receiver import Receiver

    with Receiver() as receiver:
        client = service(stand_in().url, private_addresses=True)
        video = client.submit(webhook_url=receiver.url)
        headers, body = until(receiver.first, "the webhook has come")
        with warnings.catch_warnings():
            client.openai.webhooks.verify_signature(body, headers, secret=SECRET)
            with pytest.raises(openai.InvalidWebhookSignatureError):
                client.openai.webhooks.verify_signature(body + " ", headers, secret=SECRET)
        assert '"type":"video.completed"' in body
        assert video in body
