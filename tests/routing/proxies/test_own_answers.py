"""Answers that an edge gives by itself, without asking a server."""

import asyncio
import json

import pytest

MIB = 2**20

HOST = b"host: a\r\n"
LENGTH = b"content-length: 0\r\n"
REFUSED = [
    pytest.param(b"POST /animate HTTP/1.0\r\n" + HOST + LENGTH, 426, "upgrade_required", id="HTTP/1.0"),
    pytest.param(
        b"POST /animate HTTP/1.1\r\n" + HOST + b"transfer-encoding: gzip\r\n", 501, "not_implemented", id="coding"
    ),
    pytest.param(b"POST /animate HTTP/1.1\r\n" + LENGTH, 400, "bad_request", id="no host"),
    pytest.param(b"GET /nowhere HTTP/1.1\r\n" + HOST, 404, "not_found", id="no page"),
    pytest.param(
        b"POST /animate HTTP/1.1\r\n" + HOST + b"content-length: %d\r\n" % (2 * MIB + 1), 413, "too_large", id="long"
    ),
    pytest.param(
        b"POST /animate/stream HTTP/1.1\r\n" + HOST + b"content-length: 9223372036854775806\r\n",
        413,
        "too_large",
        id="longest",
    ),
    pytest.param(
        b"PUT /anything HTTP/1.1\r\n" + HOST + b"content-length: 99999999999\r\n", 413, "too_large", id="long elsewhere"
    ),
]


async def answer(address, request):
    """Status, and body as JSON, of a request of which nothing follows its headers."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request + b"\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        lines = head.decode().splitlines()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 60)
    finally:
        writer.close()
    return int(lines[0].split()[1]), headers, json.loads(body)


def test_an_edge_answers_by_itself_in_the_shape_of_the_service_and_at_once(running):
    async def scenario():
        # An upload may take an hour: who is answered within the test did not wait for it.
        async with running({"a": 1}, service_s=0.01, jobs={"body_limit": "2MiB"}, limits={"upload_s": 3600}) as fleet:
            for case in REFUSED:
                request, status, code = case.values
                found, headers, body = await answer(fleet.places["a"].edge, request)
                assert (found, body["code"], body["field"]) == (status, code, None), case.id
                assert headers["content-type"] == "application/json"
                assert body["error"]
            assert (await fleet.client.post(fleet.url("a"), content=b"x" * (2 * MIB))).status_code == 200
            assert fleet.servers["a"][0].started == 1

    asyncio.run(scenario())


def test_who_has_no_key_is_told_so_before_the_length_is_looked_at(running, tmp_path):
    (tmp_path / "keys.yaml").write_text("somebody: a-key-of-sixteen-letters\n")

    async def scenario():
        async with running({"a": 1}, api_keys="keys.yaml", jobs={"body_limit": "1MiB"}) as fleet:
            request = b"POST /animate HTTP/1.1\r\n" + HOST + b"content-length: 99999999\r\n"
            status, _, body = await answer(fleet.places["a"].edge, request)
            assert (status, body["code"]) == (401, "unauthorized")
            key = b"x-api-key: a-key-of-sixteen-letters\r\n"
            status, _, body = await answer(fleet.places["a"].edge, request + key)
            assert (status, body["code"]) == (413, "too_large")

    asyncio.run(scenario())


def test_pages_of_the_edge_itself_say_what_they_say(running):
    async def scenario():
        async with running({"a": 1}) as fleet:
            alive, ready = [await fleet.client.get(fleet.url("a", path)) for path in ("/livez", "/readyz")]
            assert (alive.status_code, alive.text) == (200, "alive\n")
            assert (ready.status_code, ready.text) == (200, "")

    asyncio.run(scenario())
