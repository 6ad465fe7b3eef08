"""A real `bentoml serve` process, from outside."""

import asyncio
import base64
import json
import socket
import struct
from functools import partial

import httpx
import pytest
from PIL.PngImagePlugin import PngInfo

from pipeline.media.video import decode

from .conftest import LIMIT_S, STEPS


async def _burst(server, body, headers, count):
    """Send `count` requests at the same moment, each on a connection that is open already."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"POST /animate HTTP/1.1\r\nHost: test\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body
    connections = [await asyncio.open_connection(*server.address) for _ in range(count)]

    async def ask(reader, writer):
        writer.write(request)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        names = dict(line.lower().split(": ", 1) for line in head.strip().splitlines()[1:])
        content = await reader.readexactly(int(names["content-length"]))
        writer.close()
        return int(head.split()[1]), names, content

    return await asyncio.gather(*(ask(*connection) for connection in connections))


def test_readiness_goes_from_503_to_200(server):
    assert server.ready_seen == [503, 200]


def test_an_animation_comes_back_as_a_video_with_headers_that_say_how_it_was_made(server):
    reply = server.animate(seed=7)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "video/mp4"
    assert reply.headers["x-stillmotion-seed"] == "7"
    assert reply.headers["x-stillmotion-model"].startswith("animator:")
    assert reply.headers["x-stillmotion-steps"] == str(STEPS)
    assert int(reply.headers["x-stillmotion-passes"]) % STEPS == 0
    assert float(reply.headers["x-stillmotion-compute-seconds"]) > 0
    assert reply.headers["x-stillmotion-region"] == "test-1"
    clip = decode(reply.content)
    assert clip.shape[0] == 4
    assert min(clip.shape[1:3]) >= 256
    assert server.animate(seed=7).content == reply.content


@pytest.mark.parametrize(
    "prompt", ["a red circle moves right", "a red circle on the wide blue sea, far away, moves up"]
)
def test_a_prompt_that_the_model_reads_in_part_is_said_in_header_and_stream(server, prompt):
    said = "the model read the first 18 of " if "sea" in prompt else None
    header = server.animate(prompt=prompt).headers.get("x-stillmotion-prompt-truncated")
    last = server.animate("/animate/stream", prompt=prompt).text.strip().split("\n\n")[-1]
    result = json.loads(last.partition("data: ")[2])
    for found in (header, result.get("prompt_truncated")):
        assert found is None if said is None else found.startswith(said)


def test_a_picture_with_long_texts_and_one_with_odd_exif_data_are_animated(server, make):
    texts = PngInfo()
    texts.add_text("workflow", "x" * (3 * 2**20), zip=True)
    assert server.animate(image=make.picture(pnginfo=texts)).status_code == 200
    # The camera's maker is a fraction, beside an orientation.
    tags = struct.pack("<IHHHIIHHIII", 8, 2, 0x010F, 5, 1, 38, 0x0112, 3, 1, 6, 0) + struct.pack("<II", 1, 3)
    exif = b"Exif\0\0II*\0" + tags
    assert server.animate(image=make.picture(file_format="JPEG", exif=exif)).status_code == 200


@pytest.mark.parametrize(
    ("file_format", "media_type"), [("webm", "video/webm"), ("webp", "image/webp"), ("gif", "image/gif")]
)
def test_the_format_is_as_asked_for(server, file_format, media_type):
    reply = server.animate(format=file_format, frames=3, fps=5)
    assert reply.headers["content-type"] == media_type
    assert decode(reply.content).shape[0] == 3


def test_of_50_simultaneous_requests_exactly_one_is_served_and_the_rest_are_told_when_to_come_back(server, make):
    body, headers = make.body()
    alone = 0
    for _ in range(5):
        replies = asyncio.run(_burst(server, body, headers, 50))
        statuses = {status for status, _, _ in replies}
        assert statuses == {200, 429}
        # Where this program stalls while it sends, a computation is over before the last request has left.
        alone += sum(status == 200 for status, _, _ in replies) == 1
        for status, names, content in replies:
            if status == 429:
                assert int(names["retry-after"]) >= 1
                assert content == b""
                assert "connection" not in names
        server.wait_until_free()
    assert alone > 0
    events = server.computations()
    assert events == ["begins", "ended"] * (len(events) // 2)


def test_everything_else_answers_while_an_animation_is_computed(server, make):
    body, headers = make.body()
    with httpx.Client(base_url=server.url, timeout=LIMIT_S) as client:

        def all_answer_meanwhile():
            with socket.create_connection(server.address) as busy:
                _begin_by_hand(server, busy, body, headers)
                for path in ("/livez", "/readyz", "/healthz", "/metrics", "/docs.json", "/ui/", "/ui/model.json"):
                    assert client.get(path).status_code == 200, path
                assert client.get("/").headers["location"] == "ui/"
                meanwhile = server.metric("stillmotion_load") == 1
            server.wait_until_free()
            return meanwhile

        in_one_of_many_tries(all_answer_meanwhile)


@pytest.mark.parametrize("path", ["/animate", "/animate/stream"])
def test_a_client_that_goes_away_stops_the_computation_and_frees_the_slot(server, make, path):
    body, headers = make.body()
    cancelled, steps = (
        partial(server.metric, "stillmotion_cancelled_total", reason="disconnected"),
        partial(server.metric, "stillmotion_step_seconds_count"),
    )

    def is_stopped():
        before = cancelled(), steps()
        with socket.create_connection(server.address) as connection:
            _begin_by_hand(server, connection, body, headers, path)
        server.wait_until_free()
        return cancelled() == before[0] + 1 and steps() < before[1] + STEPS

    in_one_of_many_tries(is_stopped)
    events = server.computations()
    assert events == ["begins", "ended"] * (len(events) // 2)
    assert server.animate().status_code == 200


def test_progress_comes_as_events_and_ends_with_the_video(server, make):
    files, data = make.form(seed=3, format="webm")

    def comes_as_it_happens():
        events, name, meanwhile = [], "", False
        with httpx.stream("POST", server.url + "/animate/stream", files=files, data=data, timeout=LIMIT_S) as reply:
            assert reply.status_code == 200
            assert reply.headers["content-type"].startswith("text/event-stream")
            for line in reply.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    events.append((name, json.loads(line.removeprefix("data: "))))
                    if len(events) == 2:
                        meanwhile = server.metric("stillmotion_steps_left") > 0
        assert [name for name, _ in events] == ["start"] + ["step"] * STEPS + ["result"]
        assert [event["step"] for name, event in events if name == "step"] == list(range(1, STEPS + 1))
        result = events[-1][1]
        assert result["seed"] == "3"
        assert decode(base64.b64decode(result["data"])).shape[0] == 4
        return meanwhile

    in_one_of_many_tries(comes_as_it_happens)


def test_bentoml_s_own_client_gets_a_video(server, make, tmp_path):
    import bentoml

    path = tmp_path / "picture.png"
    path.write_bytes(make.picture())
    with bentoml.SyncHTTPClient(server.url) as client:
        video = client.animate(image=path, prompt="a red circle moves right", seed=1)
        assert decode(video.read_bytes()).shape[0] == 4


def test_busy_time_and_outcomes_are_counted(server):
    busy, served = (
        server.metric("stillmotion_busy_seconds_total"),
        server.metric("stillmotion_requests_total", outcome="ok"),
    )
    seconds = float(server.animate().headers["x-stillmotion-compute-seconds"])
    # Decoding and encoding are part of the time that is told, and not of that in which the slot is taken.
    assert 0 < server.metric("stillmotion_busy_seconds_total") - busy <= seconds + 1
    assert server.metric("stillmotion_requests_total", outcome="ok") == served + 1
    assert server.metric("stillmotion_step_seconds_count") > 0


def _post_by_hand(connection, body, headers, path="/animate"):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: test\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body
    )


def _begin_by_hand(server, connection, body, headers, path="/animate"):
    """Send a request, and return when its computation has begun."""
    before = server.computations().count("begins")
    _post_by_hand(connection, body, headers, path)
    server.wait_until(lambda: server.computations().count("begins") > before, "a computation begins")


def in_one_of_many_tries(attempt):
    """See that it comes true. One try may miss it: a test that stalls finds the computation over."""
    assert any(attempt() for _ in range(20))
