"""Requests that cannot be served: each gets a 4xx that names its field, and the next good one works."""

import io
import re
import socket
import struct
import zlib
from functools import partial

import pytest
from PIL import Image

from ..waiting import HTTP
from .conftest import LIMIT_S


def png_of_size(width, height):
    """A PNG that claims a size and holds no pixels: its header is all that may be looked at."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def noisy_png():
    buffer = io.BytesIO()
    Image.effect_noise((128, 128), 80).save(buffer, format="PNG")
    return buffer.getvalue()


def saved(picture, file_format, **options):
    buffer = io.BytesIO()
    picture.save(buffer, format=file_format, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (48, 40), (200, 40, 40))
MULTIPART = "multipart/form-data; boundary=x"
TURNED = Image.Exif()
TURNED[0x0112] = 6  # orientation: to be turned by 90 degrees

REFUSED = {
    "a truncated picture": ({"image": noisy_png()[:3000]}, 400, "damaged", "image"),
    "a truncated JPEG": ({"image": saved(Image.effect_noise((256, 256), 90), "JPEG")[:2000]}, 400, "damaged", "image"),
    "a header without pixels": ({"image": png_of_size(64, 64)}, 400, "damaged", "image"),
    "20,000 x 20,000 pixels": ({"image": png_of_size(20_000, 20_000)}, 400, "too_many_pixels", "image"),
    "a very long, thin picture": ({"image": png_of_size(30_000, 8)}, 400, "too_many_pixels", "image"),
    "1 x 1 pixel": ({"image": saved(Image.new("RGB", (1, 1)), "PNG")}, 400, "too_small", "image"),
    "text that calls itself a picture": ({"image": b"hello, I am a picture" * 9}, 415, "not_an_image", "image"),
    "a picture of another format": ({"image": saved(RED, "BMP")}, 415, "not_an_image", "image"),
    "an empty file": ({"image": b""}, 400, "empty", "image"),
    "the address of a picture": ({"image": "http://127.0.0.1:9/picture.png"}, 400, "not_a_file", "image"),
    "an empty prompt": ({"prompt": ""}, 400, "empty", "prompt"),
    "a prompt of blanks": ({"prompt": " \n\t "}, 400, "empty", "prompt"),
    "a prompt of 100 kB": ({"prompt": "circle " * 14_630}, 400, "too_long", "prompt"),
    "a prompt over the limit": ({"prompt": "x" * 1001}, 400, "too_long", "prompt"),
    "a prompt that is not text": ({"prompt": b"\xff\xfe\x00\x01"}, 400, "not_text", "prompt"),
    "a prompt with a NUL": ({"prompt": "a\x00b"}, 400, "not_text", "prompt"),
    "a seed that is NaN": ({"seed": "NaN"}, 400, "not_a_number", "seed"),
    "a negative seed": ({"seed": "-1"}, 400, "out_of_range", "seed"),
    "an enormous seed": ({"seed": "9" * 18}, 400, "out_of_range", "seed"),
    "a seed of a thousand digits": ({"seed": "9" * 1000}, 400, "not_a_number", "seed"),
    "infinite frames": ({"frames": "inf"}, 400, "not_a_number", "frames"),
    "no frames": ({"frames": "0"}, 400, "out_of_range", "frames"),
    "too many frames": ({"frames": "5"}, 400, "out_of_range", "frames"),
    "half a frame": ({"frames": "2.5"}, 400, "not_a_number", "frames"),
    "no frames a second": ({"fps": "0"}, 400, "out_of_range", "fps"),
    "a thousand frames a second": ({"fps": "1000"}, 400, "out_of_range", "fps"),
    "a control that the model has not": ({"motion_scale": "1"}, 400, "not_supported", "motion_scale"),
    "a guidance scale out of range": ({"guidance_scale": "100"}, 400, "out_of_range", "guidance_scale"),
    "a size that the model has not": ({"size": "832x480"}, 400, "out_of_range", "size"),
    "a guidance scale that is NaN": ({"guidance_scale": "NaN"}, 400, "not_a_number", "guidance_scale"),
    "an unknown format": ({"format": "avi"}, 400, "unknown_format", "format"),
    "a misspelled field": ({"sead": "1"}, 400, "unknown_field", "sead"),
}


@pytest.mark.parametrize("path", ["/animate", "/animate/stream"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_cannot_be_served_is_told_why(server, case, path):
    fields, status, code, field = REFUSED[case]
    steps = server.metric("stillmotion_step_seconds_count")
    reply = server.animate(path, **fields)
    assert_refused(reply, status, code, field)
    assert server.metric("stillmotion_step_seconds_count") == steps  # the model has not begun
    assert server.metric("stillmotion_load") == 0


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"", MULTIPART, 400, "malformed"),
        (b"no boundary at all", MULTIPART, 400, "malformed"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\nhi\r\n--x--\r\n", MULTIPART, 400, "malformed"),
        (b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nhi', MULTIPART, 400, "malformed"),
        (b"--x--\r\n", MULTIPART, 400, "missing"),
        (b"--x--\r\n", "multipart/form-data", 400, "malformed"),
        (b'{"prompt": "hi"}', "application/json", 415, "not_multipart"),
        (b"x", "application/vnd.bentoml+pickle", 415, "not_multipart"),
        (b"x", "", 415, "not_multipart"),
    ],
)
def test_a_malformed_body_is_a_bad_request(server, body, content_type, status, code):
    reply = HTTP.post(server.url + "/animate", content=body, headers={"Content-Type": content_type}, timeout=LIMIT_S)
    assert_refused(reply, status, code)


def test_a_field_given_twice_is_refused(server, make):
    files = [("image", ("a.png", make.picture())), ("prompt", (None, "one")), ("prompt", (None, "two"))]
    assert_refused(HTTP.post(server.url + "/animate", files=files, timeout=LIMIT_S), 400, "repeated", "prompt")


def test_a_body_over_the_limit_is_refused_by_its_length_before_it_is_read(server):
    with socket.create_connection(server.address, timeout=LIMIT_S) as connection:
        connection.sendall(
            b"POST /animate HTTP/1.1\r\nHost: test\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 1000000000000\r\n\r\n"
        )
        head = connection.recv(65536)
    assert head.startswith(b"HTTP/1.1 413")


def test_a_body_over_the_limit_is_refused_however_it_comes(server):
    def chunks():
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        for _ in range(40):
            yield bytes(2**20)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    reply = HTTP.post(server.url + "/animate", content=chunks(), headers=headers, timeout=LIMIT_S)
    assert_refused(reply, 413, "too_large", "body")
    reply = server.animate(image=bytes(40 * 2**20))
    assert_refused(reply, 413, "too_large", "body")


def begin_upload(connection, make):
    """Send the head of a request and the first bytes of its body."""
    body, headers = make.body()
    connection.sendall(
        f"POST /animate HTTP/1.1\r\nHost: test\r\nContent-Type: {headers['Content-Type']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body[:50]
    )


def test_a_slow_upload_keeps_nobody_waiting_and_is_refused_when_another_request_has_the_slot(server, make):
    with socket.create_connection(server.address, timeout=LIMIT_S) as connection:
        begin_upload(connection, make)
        assert server.animate().status_code == 200
        assert connection.recv(65536).startswith(b"HTTP/1.1 429")


def test_a_client_that_goes_away_while_sending_leaves_the_server_free(server, make):
    disconnected = partial(server.metric, "stillmotion_requests_total", outcome="disconnected")
    before, busy = disconnected(), server.metric("stillmotion_busy_seconds_total")
    with socket.create_connection(server.address) as connection:
        begin_upload(connection, make)
    server.wait_until(lambda: disconnected() == before + 1, "the client is missed")
    assert server.metric("stillmotion_load") == 0
    assert server.metric("stillmotion_busy_seconds_total") == busy


UNUSUAL = {  # tests/pipeline/test_images.py knows more of them
    "CMYK, turned by EXIF": saved(RED.convert("CMYK"), "JPEG", exif=TURNED),
    "animated WebP": saved(RED, "WEBP", save_all=True, append_images=[Image.new("RGB", (48, 40), "blue")], duration=50),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_picture_is_animated(server, kind):
    assert server.animate(image=UNUSUAL[kind], frames=2).status_code == 200


def test_a_prompt_that_looks_like_a_number_is_text(server):
    for prompt in ("123", "日本語 🎈\nline"):
        assert server.animate(prompt=prompt, frames=2).status_code == 200, prompt


def test_the_next_good_request_works(server):
    assert server.animate().status_code == 200


def assert_refused(reply, status, code, field=None):
    assert reply.status_code == status, reply.text
    body = reply.json()
    assert set(body) == {"error", "code", "field"}
    assert body["code"] == code
    if field is not None:
        assert body["field"] == field
        assert field in body["error"]
    assert not re.search(r"Traceback|File \"|\.py", reply.text)
