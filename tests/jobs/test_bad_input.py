"""Requests that cannot be served: one clear answer each, in the shape of OpenAI's errors."""

from __future__ import annotations

import hashlib
import select
import socket
import time

import openai
import pytest

from ..ports import free_port
from ..waiting import HTTP
from .conftest import data_url, picture, until

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")

PIXELS = picture((9000, 6000), colour=1, mode="1")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A service that no test of this module changes for the others."""
    import contextlib

    from jobs.app import make_app
    from jobs.files import Files
    from jobs.settings import Settings
    from jobs.store import Store

    from .conftest import Client, served
    from .standin import StandIn

    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(served(StandIn().app()))
        settings = Settings(upstream=upstream, data=tmp_path_factory.mktemp("data"), upload_s=600)
        store = Store(settings.database_url)
        store.create()
        yield Client(stack.enter_context(served(make_app(settings, store, Files(settings.files_url)))))


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"prompt": " "}, 400, "prompt", "say what should move"),
        ({"prompt": "x" * 101}, 400, "prompt", "101 characters is over the limit of 100"),
        ({"prompt": "a\x00b"}, 400, "prompt", "control characters"),
        ({"model": "sora-2"}, 404, "model", "'sora-2' is not one of stillmotion, standin:1"),
        ({"size": "90x70"}, 400, "size", "is not one of 64x64, 96x64; the nearest is 96x64"),
        ({"size": "big"}, 400, "size", "is not one of 64x64, 96x64"),
        (
            {"seconds": "12"},
            400,
            "seconds",
            "12 is outside 0.125 to 6.12, which this model can make; the nearest is",
        ),
        ({"seconds": "0.001", "fps": "1"}, 400, "seconds", "the nearest is 1"),
        ({"seconds": "long"}, 400, "seconds", "'long' is not a number"),
        ({"seconds": "nan"}, 400, "seconds", "not a length of time"),
        ({"seconds": "2", "frames": "5"}, 400, "seconds", "and not both"),
        ({"fps": "61"}, 400, "fps", "'61' is outside 1 to 60"),
        ({"fps": "0"}, 400, "fps", "'0' is outside 1 to 60"),
        ({"seconds": "1", "fps": "0"}, 400, "fps", "'0' is outside 1 to 60"),
        ({"seconds": "1", "fps": "fast"}, 400, "fps", "not a whole number"),
        ({"seed": "1.5"}, 400, "seed", "'1.5' is not a whole number"),
        ({"seed": "-1"}, 400, "seed", "outside 0 to 4294967295"),
        ({"format": "avi"}, 400, "format", "is not one of mp4, gif"),
        ({"style": "noir"}, 400, "style", "the model has no such field"),
        ({"n": "4"}, 400, "n", "one video"),
        ({"priority": "urgent"}, 400, "priority", "not one of interactive, batch"),
        ({"webhook_url": "https://example.org/"}, 400, "webhook_url", "no secret to sign"),
        ({"image": b""}, 400, "input_reference", "the file is empty"),
        ({"image": b"GIF89a.."}, 415, "input_reference", "not a PNG, JPEG or WebP picture"),
        ({"image": picture()[:30]}, 415, "input_reference", "not a PNG"),
        ({"image": PIXELS}, 400, "input_reference", "9000 x 6000 is over the limit of 50000000 pixels"),
    ],
)
def test_a_field_that_is_wrong_is_named_with_its_limit(client, fields, status, param, words):
    answer = client.create(**fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("http://127.0.0.1/p.png", "others are never fetched"),
        ("https://example.org/p.png", "others are never fetched"),
        ("file:///etc/passwd", "others are never fetched"),
        ("data:image/png;base64,&&&", "not base64"),
        ("data:image/png;base64,aGFsbG8=", "not a PNG"),
        ("data:image/png,abc", "not data:image/...;base64"),
        ("data:text/html;base64,aGFsbG8=", "not data:image/...;base64"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "not a PNG"),
        ({"file_id": "file-1"}, "no store of files"),
        ({"image_url": None}, "send a picture"),
        ([1], "send a picture"),
    ],
)
def test_a_picture_that_is_no_file_is_never_fetched(client, value, words):
    answer = client.http.post("/v1/videos", json={"prompt": "p", "input_reference": value})
    assert answer.status_code in (400, 415)
    assert answer.json()["error"]["param"] == "input_reference"
    assert words in answer.json()["error"]["message"]


FORM = b"".join(
    b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n1\r\n' % name for name in (b"prompt", b"seed")
) + b"--x--\r\n"  # fmt: skip


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"prompt": {"a": 1}}', "application/json", 400),
        (b'{"prompt": "\\ud800"}', "application/json", 400),
        (b"--x\r\nbroken", "multipart/form-data; boundary=x", 400),
        (b"", "multipart/form-data", 400),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"", "", 415),
        (b'{"prompt": "a", "prompt": "b"}', "application/json", 400),
        (b'{"a\\u0000": 1}', "application/json", 400),
        (FORM, "multipart/form-data; boundary=x; charset=undefined", 400),
        (FORM.replace(b'"prompt"', b'"prompt[a]"'), "multipart/form-data; boundary=x", 400),
        (FORM.replace(b'"seed"', b'"prompt[a]"'), "multipart/form-data; boundary=x", 400),
        (FORM.replace(b'"seed"', b'"prompt"'), "multipart/form-data; boundary=x", 400),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(client, content, kind, status):
    answer = client.http.post("/v1/videos", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_over_the_limit_is_refused_by_its_length_and_as_it_comes(client):
    head = {"Content-Type": "application/json"}
    assert client.http.post("/v1/videos", content=b"x" * 50_000_000, headers=head).status_code == 413
    chunks = (b"x" * 1_000_000 for _ in range(50))
    assert client.http.post("/v1/videos", content=chunks, headers=head).status_code == 413


def test_a_slow_upload_is_ended_and_further_ones_are_told_when_to_come(stand_in, service):
    client = service(stand_in().url, upload_s=5, max_uploads=4)
    address = client.url.removeprefix("http://").split(":")
    head = (
        b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    slow = []

    def refused():
        if not slow or select.select(slow, [], [], 0)[0]:  # on a busy machine one may end before the rest have come
            while slow:
                slow.pop().close()
            for _ in range(4):
                slow.append(socket.create_connection((address[0], int(address[1]))))
                slow[-1].sendall(head)
        return (got := client.create()).status_code == 429 and got

    answer = until(refused, "all places are taken")
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["connection"] == "close", "what follows may be the rest of its body"
    for one in slow:
        assert b"408" in one.recv(100)
        one.close()
    until(lambda: client.create().status_code == 200, "there is room again")


@pytest.mark.parametrize("video", ["video_" + "0" * 32, "nonsense", "video_%00", "x" * 500])
def test_an_id_that_does_not_exist_is_not_found(client, video):
    for answer in (
        client.get(video),
        client.http.delete(f"/v1/videos/{video}"),
        client.http.get(f"/v1/videos/{video}/content"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("after=x", "after"),
        ("limit=%C2%B2", "limit"),
        ("limit=" + "1" * 5000, "limit"),
        ("after=%00", "after"),
    ],
)
def test_a_page_that_cannot_be_is_refused(client, query, param):
    answer = client.http.get(f"/v1/videos?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("PUT", "/v1/videos", 405), ("GET", "/v2", 404), ("POST", "/v1/videos/edits", 404)],
)
def test_other_paths_and_methods_answer_in_the_same_shape(client, method, path, status):
    answer = client.http.request(method, path)
    assert answer.status_code == status
    assert "message" in answer.json()["error"]


def test_a_page_of_another_site_cannot_submit_where_there_are_no_keys(client):
    assert client.create(headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    for name in ("attacker.example:8080", "127.0.0.1.attacker.example", "[1", "localhost@x"):
        answer = client.http.get("/v1/videos", headers={"Host": name})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site"), name
    for name in ("localhost:8080", "127.0.0.1", "[::1]:80"):
        assert client.http.get("/v1/videos", headers={"Host": name}).status_code == 200


def test_content_before_it_is_ready_and_of_a_failed_job_says_so(stand_in, service):
    from starlette.responses import JSONResponse

    server = stand_in(step_s=None)
    client = service(server.url)
    video = client.submit()
    client.wait(video, status="in_progress")
    answer = client.http.get(f"/v1/videos/{video}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "video_not_ready")
    assert int(answer.headers["openai-poll-after-ms"]) > 0
    assert client.http.get(f"/v1/videos/{video}/content?variant=spritesheet").status_code == 400
    assert client.http.get(f"/v1/videos/{video}/content?variant=picture").content == picture()
    server.allow(4)
    client.wait(video)
    said = {"error": "seed: 5 is bad", "code": "out_of_range", "field": "seed"}
    server.refuse = JSONResponse(said, status_code=400)
    failed = client.submit()
    client.wait(failed, status="failed")
    assert client.get(failed).json()["error"] == {"code": "out_of_range", "message": "seed: 5 is bad", "param": "seed"}
    assert client.http.get(f"/v1/videos/{failed}/content").json()["error"]["code"] == "video_failed"


def test_a_key_sees_its_own_jobs_alone(stand_in, service):
    keys = [{"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("ann", "bob")]
    keys[1]["priorities"] = ["batch"]
    ann = service(stand_in().url, key="ann", keys=keys)
    video = ann.submit()
    ann.wait(video)
    bob = type(ann)(ann.url, "bob")
    assert bob.get(video).status_code == 404
    assert bob.http.delete(f"/v1/videos/{video}").status_code == 404
    assert bob.http.get("/v1/videos").json()["data"] == []
    assert bob.create().status_code == 403
    nobody = type(ann)(ann.url, "eve")
    with pytest.raises(openai.AuthenticationError):
        list(nobody.openai.videos.list())
    assert ann.get(video).status_code == 200


def test_an_idempotency_key_gives_the_same_video_once(stand_in, service):
    server = stand_in()
    client = service(server.url)
    head = {"Idempotency-Key": "order-17"}
    first = client.create(headers=head).json()["id"]
    assert client.create(headers=head).json()["id"] == first
    other = client.create("another prompt", headers=head)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert client.create(headers={"Idempotency-Key": "x" * 256}).status_code == 400
    client.wait(first)
    assert server.count("begin") == 1


def test_an_idempotency_key_is_of_what_was_sent_and_not_of_what_it_means_today(stand_in, service):
    port = free_port()
    client = service(f"http://127.0.0.1:{port}", most_queued=1)
    head = {"Idempotency-Key": "order-17"}
    first = client.create(seconds="1", headers=head).json()["id"]
    stand_in(port=port)
    client.wait(first)
    again = client.create(seconds="1", headers=head)
    assert (again.status_code, again.json()["id"]) == (200, first), "the model is known by now"
    assert client.create(seconds="1.0", headers=head).status_code == 422
    other = client.submit(image=picture(colour=(0, 0, 200)))
    client.wait(other)
    remix = {"url": f"/v1/videos/{first}/remix", "json": {"prompt": "p"}, "headers": {"Idempotency-Key": "remix"}}
    made = client.http.post(**remix).json()["id"]
    assert client.http.post(**remix).json()["id"] == made
    assert client.http.post(**remix | {"url": f"/v1/videos/{other}/remix"}).status_code == 422
    assert client.http.post(**remix | {"url": "/v1/videos"}).status_code == 422


def test_a_full_queue_is_refused_with_the_time_to_come_again(stand_in, service):
    client = service(stand_in(step_s=None).url, most_queued=2, most_in_flight=1)  # none of those that wait is tried
    running = client.submit()
    client.wait(running, status="in_progress")
    waiting = [client.submit(), client.submit()]
    answer = client.create()
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    assert client.get(waiting[1]).json()["queue_position"] == 2
    files = {path.name for path in (client.data / "files").glob("video_*")}
    assert files == {running, *waiting}, "what was refused has left a file"


def test_parts_of_a_video_are_served(stand_in, service):
    client = service(stand_in().url)
    video = client.submit("abc")
    client.wait(video)
    whole = client.http.get(f"/v1/videos/{video}/content")
    assert (whole.content, whole.headers["content-type"]) == (b"video of abc", "video/mp4")
    assert "animation-7.mp4" in whole.headers["content-disposition"]
    for asked, got in [("0-4", b"video"), ("9-", b"abc"), ("-2", b"bc"), ("9-99", b"abc")]:
        part = client.http.get(f"/v1/videos/{video}/content", headers={"Range": f"bytes={asked}"})
        assert (part.status_code, part.content) == (206, got)
    for odd in ("bytes=99-", "bytes=5-2", "bytes=-", "bytes=-0", "lines=1-2", "bytes=0-1,3-4"):
        assert client.http.get(f"/v1/videos/{video}/content", headers={"Range": odd}).status_code == 200
    head = client.http.head(f"/v1/videos/{video}/content")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "12", b"")


def test_a_job_expires_with_its_files(stand_in, service):
    client = service(stand_in().url, expires_s=0.1)
    video = client.submit()
    until(lambda: client.get(video).status_code == 404, "it has expired")
    assert list((client.data / "files").glob("video_*")) == []
    assert client.http.get("/v1/videos").json()["data"] == []


def test_a_job_that_cannot_be_removed_keeps_no_other_one(stand_in, service):
    server = stand_in(step_s=None)
    client = service(server.url, expires_s=0.1)
    stuck, other = client.submit(), client.submit()
    (client.data / "files" / stuck / "folder").mkdir()  # somebody else's
    server.allow(8)
    until(lambda: not (client.data / "files" / other).exists(), "the other one has expired")
    assert client.http.get("/readyz").status_code == 200


def test_a_picture_comes_from_a_host_that_the_operator_allows(stand_in, service):
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    from .conftest import served

    pages = {"/p.png": Response(picture()), "/gone": Response(status_code=404), "/large": Response(b"x" * 2**21)}

    async def page(request):
        return pages[request.url.path]

    with served(Starlette(routes=[Route("/{path}", page)])) as host:
        options = {"fetch_hosts": ["127.0.0.1"], "private_addresses": True, "max_image_bytes": 2**20}
        client = service(stand_in().url, **options)

        def create(url):
            return client.http.post("/v1/videos", json={"prompt": "p", "input_reference": {"image_url": url}})

        assert create(f"{host}/p.png").status_code == 200
        assert "answers 404" in create(f"{host}/gone").text
        assert create(f"{host}/large").status_code == 413
        assert create("http://localhost/p.png").json()["error"]["code"] == "forbidden_address"
        assert create("http://127.0.0.1:9/p.png").json()["error"]["code"] == "not_fetched"
        assert create(data_url()).status_code == 200


def test_a_service_that_is_stopped_ends_in_time_and_gives_jobs_back(processes):
    gpu = processes.gpu(step_s=30)
    jobs = processes.jobs(gpu.url, drain_s=0.2)

    body = {"prompt": "p", "input_reference": data_url()}
    video = HTTP.post(f"{jobs.url}/v1/videos", json=body).json()["id"]
    until(lambda: HTTP.get(f"{jobs.url}/v1/videos/{video}").json()["status"] == "in_progress", "it is computed")
    began = time.monotonic()
    assert jobs.stop() == 0
    assert time.monotonic() - began < 60
    until(lambda: processes.computed == [("begin", video), ("stop", video)], "the server has stopped")
