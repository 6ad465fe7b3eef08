"""Connections of clients that send or read slowly, or not what HTTP is: a real server of a small application."""

import asyncio
import contextlib
import logging
from functools import partial

import pytest
import uvicorn

from serving.connections import LimitedProtocol, Limits, Waiting, protect
from serving.outermost import Outermost, requested
from serving.settings import Settings

from .bench import Loop, put_clock_forward, until

LONG = 600.0
LIMITS = Limits(head_s=LONG, rest_s=LONG, rest_bytes=100_000, read_s=LONG)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def application(scope, receive, send):  # noqa: ARG001
    """Answers without a look at the body, with as many bytes as the query says."""
    scope = requested(scope)
    if scope["type"] != "http":
        return
    body = b"x" * int(scope["query_string"] or 2)
    headers = [(b"content-length", str(len(body)).encode()), (b"x-path", repr(scope["path"]).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def serving(limits, keep_alive_s=LONG):
    protocol = partial(LimitedProtocol, limits)
    config = uvicorn.Config(
        Outermost(application), port=0, http=protocol, log_config=None, lifespan="off", timeout_keep_alive=keep_alive_s
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[:2], server
    finally:
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        server.servers[0].close()


async def ended(reader):
    """Read until the server closes; what came before."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            received += piece
    return bytes(received)


def run(test, limits=LIMITS, **options):
    async def running():
        async with serving(limits, **options) as (address, server):
            await test(lambda: asyncio.open_connection(*address), server)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(running())


async def until_it_waits(server, what):
    """Until the only connection of a server waits for this."""
    await until(lambda: [connection._waits_for for connection in server.server_state.connections] == [what])


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ", GET + b"GET / HT"])
def test_a_head_that_does_not_end_closes_the_connection(sent):
    async def test(connect, server):
        reader, writer = await connect()
        writer.write(sent)
        if GET in sent:
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\nxx")
        await until_it_waits(server, Waiting.HEAD)
        put_clock_forward(LONG)
        assert await ended(reader) == b""

    run(test)


def test_a_byte_now_and_then_does_not_extend_the_time_of_a_head():
    async def test(connect, _):
        reader, writer = await connect()

        async def drip():
            with contextlib.suppress(ConnectionError):
                for byte in GET * 1000:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.1)

        dripping = asyncio.ensure_future(drip())
        assert await ended(reader) == b""
        dripping.cancel()

    run(test, Limits(head_s=0.5, rest_s=LONG, rest_bytes=1, read_s=LONG))


def test_a_connection_that_is_kept_alive_without_another_request_is_closed():
    async def test(connect, server):
        reader, writer = await connect()
        writer.write(GET)
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\nxx")
        await until_it_waits(server, Waiting.REQUEST)
        put_clock_forward(30)
        assert await ended(reader) == b""

    run(test, keep_alive_s=30)


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_body_that_goes_on_after_the_answer_closes_the_connection_by_its_size():
    async def test(connect, _):
        reader, writer = await connect()
        writer.write(CHUNKED)
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")

        async def flood():
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")
                    await writer.drain()

        flooding = asyncio.ensure_future(flood())
        await ended(reader)
        flooding.cancel()

    run(test)


def test_a_body_that_goes_on_after_the_answer_closes_the_connection_by_its_time():
    async def test(connect, _):
        reader, writer = await connect()
        writer.write(CHUNKED + b"1\r\na\r\n")

        async def drip():
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"1\r\na\r\n")
                    await asyncio.sleep(0.05)

        dripping = asyncio.ensure_future(drip())
        assert b"200 OK" in await ended(reader)
        dripping.cancel()

    run(test, Limits(head_s=LONG, rest_s=0.5, rest_bytes=10**9, read_s=LONG))


def test_a_connection_goes_on_when_a_body_has_ended_after_its_answer_and_is_closed_when_nothing_follows():
    async def test(connect, server):
        reader, writer = await connect()
        writer.write(CHUNKED + b"1\r\na\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\nxx")
        writer.write(b"0\r\n\r\n" + GET)
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\nxx")
        writer.write(CHUNKED + b"1\r\na\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\nxx")
        writer.write(b"0\r\n\r\n")
        await until_it_waits(server, Waiting.REQUEST)
        put_clock_forward(30)
        assert await ended(reader) == b""

    run(test, keep_alive_s=30)


@pytest.mark.parametrize("query", [b"1000000", b"100000000"])
@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"])
def test_an_answer_that_is_not_read_closes_the_connection(query, close):
    async def test(connect, server):
        _, writer = await connect()
        writer.transport.pause_reading()
        writer.write(b"GET /?" + query + b" HTTP/1.1\r\nHost: a\r\n" + close + b"\r\n")
        await until(lambda: server.server_state.total_requests)
        await until(lambda: not server.server_state.connections)

    run(test, Limits(head_s=LONG, rest_s=LONG, rest_bytes=1, read_s=0.3), keep_alive_s=0.3)


def test_beyond_the_limit_the_connection_that_has_waited_longest_makes_room():
    async def test(connect, _):
        waiting = [await connect() for _ in range(3)]
        waiting.append(await connect())
        assert await ended(waiting[0][0]) == b""
        for reader, writer in waiting[1:]:
            writer.write(GET)
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")

    run(test, Limits(head_s=LONG, rest_s=LONG, rest_bytes=1, read_s=LONG, most_waiting=3))


DAMAGED = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a length that is no number": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "a header that is folded": b"GET / HTTP/1.1\r\nHost: a\r\n X: b\r\n\r\n",
    "a header with a NUL": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
    "a head over the limit": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    "a chunk with a size that is none": CHUNKED + b"zz\r\na\r\n",
    "a chunk without its end": CHUNKED + b"1\r\nabc\r\n",
    "a version that is not known": b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "HTTP/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_not_http_closes_its_connection_and_harms_no_other(case, caplog):
    async def test(connect, _):
        good_reader, good_writer = await connect()
        reader, writer = await connect()
        writer.write(DAMAGED[case])
        received = await ended(reader)
        assert b"HTTP/1.1 5" not in received
        good_writer.write(GET)
        assert b"200 OK" in await good_reader.readuntil(b"\r\n\r\n")

    with caplog.at_level(logging.INFO):
        run(test, keep_alive_s=1)
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_an_upgrade_that_is_not_offered_is_a_request_like_any_other():
    async def test(connect, _):
        reader, writer = await connect()
        upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n" + upgrade)
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")

    run(test)


def test_the_application_gets_the_request_as_it_came_and_the_log_holds_no_control_characters(caplog):
    async def test(connect, _):
        reader, writer = await connect()
        kind = b"text/\xff\xfe\x9b31m"
        writer.write(b"GET /%00%1b[31m%0a/x HTTP/1.1\r\nHost: \xff\\N\r\nContent-Type: " + kind + b"\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert rb"x-path: '/\x00\x1b[31m\n/x'" in head
        await reader.readexactly(2)

    with caplog.at_level(logging.INFO, "bentoml.access"):
        run(test)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "bentoml.access"]
    assert line.isprintable()
    assert "path=/%00%1b[31m%0a/x,type=text/\\xff\\xfe\\x9b31m," in line
    assert "(status=200,type=,length=2)" in line


def test_a_path_without_end_is_cut_in_the_log(caplog):
    async def test(connect, _):
        reader, writer = await connect()
        writer.write(b"GET /" + b"a" * 30_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.readuntil(b"\r\n\r\nxx")

    with caplog.at_level(logging.INFO, "bentoml.access"):
        run(test)
    assert max(len(record.getMessage()) for record in caplog.records) < 1000


def test_the_limits_are_those_of_the_settings():
    limits = Limits.of(Settings(headers_s=1, upload_s=2, send_s=3))
    assert (limits.head_s, limits.rest_s, limits.read_s) == (1, 2, 3)
    assert limits.rest_bytes == Settings().max_body_bytes


def test_where_another_program_serves_the_log_says_that_limits_are_its_business(caplog):
    protect(Settings())
    assert "not served by uvicorn" in caplog.text
