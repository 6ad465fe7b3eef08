"""What happens before a request has the slot, and after it has given it back."""

import asyncio
import threading

import pytest

from pipeline.errors import InputError
from serving.host import State
from serving.settings import Settings
from serving.uploads import ClientGoneError, TooManyUploadsError, Uploads

from .bench import put_clock_forward


def feeding(client):
    """Start a client whose body the test sends, piece by piece."""
    messages = asyncio.Queue()

    async def receive():
        client.read += 1
        return await messages.get()

    def send(data, more=True):
        messages.put_nowait({"type": "http.request", "body": data, "more_body": more})

    client.receive = receive
    client.start()
    return send


def test_a_slow_upload_holds_no_slot_and_is_refused_as_soon_as_another_request_has_it(bench, run, until):
    async def test():
        b = await bench().ready()
        slow = b.client()
        send = feeding(slow)
        send(slow.body[:50])
        await until(lambda: slow.read == 2)  # it waits for the rest
        assert b.host.slot.load == 0
        fast = b.client().start()
        await slow.task
        assert slow.status == 429
        assert int(dict(slow.sent[0]["headers"])[b"retry-after"]) >= 1
        assert slow.content == b""
        b.engine.allowed.release(3)
        await fast.task
        assert fast.status == 200
        assert b.host.uploads.held_bytes == 0
        assert (b.host.metrics.outcome("busy"), b.host.metrics.outcome("ok")) == (1, 1)

    run(test)


def test_a_request_that_comes_while_the_slot_is_taken_is_refused_before_its_body_is_read(bench, run, until):
    async def test():
        b = await bench().ready()
        first = b.client().start()
        await until(lambda: b.engine.computing)
        second = b.client()
        await second.start().task
        assert (second.status, second.read) == (429, 0)
        b.engine.allowed.release(3)
        await first.task
        assert first.status == 200

    run(test)


@pytest.mark.parametrize("path", ["/animate", "/animate/stream"])
def test_of_many_uploads_that_are_complete_at_once_one_is_served(bench, run, until, path):
    async def test():
        b = await bench().ready()
        clients = [b.client(path).start() for _ in range(20)]
        await until(lambda: sum(client.task.done() for client in clients) == 19)
        b.engine.allowed.release(3)
        await asyncio.gather(*(client.task for client in clients))
        assert sorted(client.status for client in clients) == [200] + [429] * 19
        assert b.engine.most == 1

    run(test)


def test_an_upload_that_takes_too_long_is_cut_off_without_ever_having_the_slot(bench, run, until):
    async def test():
        b = await bench(upload_s=20).ready()
        loads = []
        b.host.slot._on_change = loads.append
        slow = b.client()
        feeding(slow)(slow.body[:50])
        await until(lambda: slow.read == 2)
        put_clock_forward(20)
        await slow.task
        assert slow.status == 408
        assert b'"slow_upload"' in slow.content
        assert dict(slow.sent[0]["headers"])[b"connection"] == b"close"
        assert loads == []
        assert b.host.metrics.outcome("slow_upload") == 1

    run(test)


@pytest.mark.parametrize(
    "settings", [{"max_uploads": 1}, {"max_uploads_bytes": 1024, "max_image_bytes": 1024, "max_prompt_chars": 100}]
)
def test_an_upload_for_which_there_is_no_room_beside_others_is_refused_until_there_is(bench, run, until, settings):
    async def test():
        b = await bench(**settings).ready()
        first = b.client()
        body = first.body
        send = feeding(first)
        send(b"x" * (b.host.settings.max_body_bytes - 1))
        await until(lambda: first.read == 2)
        second = b.client()
        await second.start().task
        assert second.status == 429
        assert int(dict(second.sent[0]["headers"])[b"retry-after"]) >= 1
        send(b"", more=False)  # not a form
        await first.task
        assert first.status == 400
        b.engine.allowed.release(3)
        third = b.client()
        assert third.body == body
        await third.start().task
        assert third.status == 200

    run(test)


def test_a_server_that_is_told_to_stop_ends_uploads_at_once(bench, run, until):
    async def test():
        b = await bench().ready()
        slow = b.client()
        feeding(slow)(slow.body[:50])
        await until(lambda: slow.read == 2)
        b.host.metrics.ready = b.host.metrics.load
        b.host.drain()
        b.host.uploads.interrupt()
        await slow.task
        assert slow.status == 503
        assert b'"draining"' in slow.content

    run(test)


@pytest.mark.parametrize(("start", "end"), [(30, 90), (0, 0)])
def test_a_damaged_picture_is_refused_without_the_slot(bench, run, make, start, end):
    async def test():
        b = await bench().ready()
        loads = []
        b.host.slot._on_change = loads.append
        picture = make.picture()
        b.request = make.body(picture[: len(picture) - end] if end else picture[:start] or b"\x89PNG\r\n\x1a\n")
        client = b.client("/animate/stream")
        await client.start().task
        assert client.status in (400, 415)
        assert b'"image"' in client.content
        assert loads == []

    run(test)


class Held:
    """Keeps the thread that encodes busy until it is told to go on."""

    def __init__(self, host):
        self.go_on = threading.Event()
        host._encoder.submit(self.go_on.wait, 900)  # a thread that waits for ever would keep the program


def test_while_a_video_is_encoded_the_next_animation_is_computed_and_no_more_than_one_waits(bench, run, until):
    async def test():
        b = await bench().ready()
        held = Held(b.host)
        b.engine.allowed.release(6)
        first = b.client().start()
        await until(lambda: b.host._encoding is not None and not b.host.slot.load)
        second = b.client().start()
        await until(lambda: not b.engine.allowed._value and not b.engine.computing)
        assert b.host.slot.load == 1  # it has its frames, and nowhere to put them
        assert (first.status, second.status) == (None, None)
        third = b.client().start()
        await third.task
        assert third.status == 429
        held.go_on.set()
        await asyncio.gather(first.task, second.task)
        assert (first.status, second.status) == (200, 200)
        assert b.engine.most == 1

    run(test)


def test_a_server_that_stops_waits_for_the_video_that_is_being_encoded(bench, run, until):
    async def test():
        b = await bench().ready()
        held = Held(b.host)
        b.engine.allowed.release(3)
        client = b.client().start()
        await until(lambda: b.host._encoding is not None and not b.host.slot.load)
        idle = asyncio.ensure_future(asyncio.to_thread(b.host.wait_until_idle))
        assert not (await asyncio.wait({idle}, timeout=0.1))[0]
        held.go_on.set()
        await idle
        await client.task
        assert client.status == 200

    run(test)


async def until_encoding(b, until, client):
    """Start a client and let its frames be computed; its ticket, when it has given the slot back."""
    client.start()
    await until(lambda: b.engine.computing)
    ticket = b.host.slot.holder
    b.engine.allowed.release(3)
    await until(lambda: b.host._encoding is not None and not b.host.slot.load)
    return ticket


@pytest.mark.parametrize("path", ["/animate", "/animate/stream"])
def test_the_deadline_counts_until_the_video_is_encoded(bench, run, until, path):
    async def test():
        b = await bench(deadline_s=60).ready()
        held = Held(b.host)
        client = b.client(path)
        ticket = await until_encoding(b, until, client)
        put_clock_forward(60)
        await until(lambda: ticket.reason == "deadline")
        if path == "/animate":
            await until(lambda: client.status == 504)  # before the encoder is done
        held.go_on.set()
        await client.task
        assert b'"deadline"' in client.content
        assert b.host.metrics.outcome("deadline") == 1
        assert b.host.slot.load == 0

    run(test)


def test_a_client_that_leaves_while_its_video_is_encoded_is_counted_as_gone(bench, run, until):
    async def test():
        b = await bench().ready()
        held = Held(b.host)
        client = b.client()
        ticket = await until_encoding(b, until, client)
        client.gone.set()
        await until(lambda: ticket.reason == "disconnected")
        held.go_on.set()
        await client.task
        assert b.host.metrics.outcome("disconnected") == 1
        assert b.host.slot.load == 0

    run(test)


def failing(*_):
    raise OSError("no space left on device")


@pytest.mark.parametrize("series", ["steps_left", "step_seconds", "load", "compute_seconds"])
def test_a_metric_that_cannot_be_written_fails_the_request_and_never_keeps_the_slot(bench, run, series):
    async def test():
        b = await bench().ready()
        measured = getattr(b.host.metrics, series)
        measured.set = measured.observe = failing
        b.engine.allowed.release(3)
        client = b.client()
        await client.start().task
        assert client.status == 500
        assert b"no space" not in client.content
        assert b.host.slot.load == 0
        del measured.set, measured.observe
        b.engine.allowed.release(6)
        served = b.client()
        await served.start().task
        assert served.status == 200

    run(test)


def test_an_engine_that_fails_before_its_first_step_frees_the_slot(bench, run):
    async def test():
        b = await bench().ready()
        del b.engine.allowed  # whatever it is
        client = b.client("/animate/stream")
        await client.start().task
        assert b'"internal"' in client.content
        assert b.host.slot.load == 0
        assert b.host.state is State.READY

    run(test)


def test_a_body_ends_with_its_limits_or_its_client():
    async def read(messages, limit=10, headers=()):
        left = iter(messages)

        async def receive():
            return next(left)

        async with Uploads(12, 2).begin(60) as upload:
            return await upload.read(receive, dict(headers), limit)

    def part(data, more=True):
        return {"type": "http.request", "body": data, "more_body": more}

    assert asyncio.run(read([part(b"ab"), part(b"", more=True), part(b"c", more=False)])) == b"abc"
    with pytest.raises(InputError, match="over the limit of 10 bytes"):
        asyncio.run(read([part(b"a" * 6), part(b"a" * 6)]))
    with pytest.raises(InputError):
        asyncio.run(read([], headers={b"content-length": b"11"}.items()))
    with pytest.raises(TooManyUploadsError):
        asyncio.run(read([part(b"a" * 13)], limit=20))
    with pytest.raises(ClientGoneError):
        asyncio.run(read([part(b"a"), {"type": "http.disconnect"}]))


def test_one_body_of_the_greatest_size_always_has_room(bench):
    b = bench(max_uploads_bytes=1024)
    assert b.host.uploads._most_bytes == Settings().max_body_bytes
