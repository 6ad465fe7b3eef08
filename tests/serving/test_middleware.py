"""The middleware around an engine that a test holds in its hands: what cannot be timed with a real one."""

import json

import pytest

from pipeline.errors import Cancelled, ModelError, NotFiniteError
from serving.host import State

from .bench import put_clock_forward


def test_at_the_deadline_the_client_is_answered_at_once_and_the_slot_is_freed_when_the_step_ends(bench, run, until):
    async def test():
        b = await bench(deadline_s=60).ready()
        late = b.client().start()
        await until(lambda: b.engine.computing)
        put_clock_forward(60)
        await until(lambda: late.status is not None)
        assert late.status == 504
        assert b'"deadline"' in late.content
        assert b.host.slot.load == 1  # a step is still being computed
        refused = b.client().start()
        await refused.task
        assert refused.status == 429
        b.engine.allowed.release()
        await late.task
        assert b.host.slot.load == 0
        assert sum(message["type"] == "http.response.start" for message in late.sent) == 1
        assert b.host.metrics.outcome("deadline") == 1
        b.engine.allowed.release(3)
        served = b.client().start()
        await served.task
        assert served.status == 200
        assert b.engine.most == 1

    run(test)


def test_at_the_deadline_of_a_stream_its_last_event_says_so(bench, run, until):
    async def test():
        b = await bench(deadline_s=60).ready()
        late = b.client("/animate/stream").start()
        await until(lambda: b.engine.computing)
        put_clock_forward(60)
        await until(lambda: b.host.slot.holder.reason == "deadline")
        b.engine.allowed.release()
        await late.task
        assert late.status == 200
        assert late.content.endswith(b"\n\n")
        assert b"event: error" in late.content
        assert b'"deadline"' in late.content
        assert b.host.metrics.outcome("deadline") == 1
        assert b.host.slot.load == 0

    run(test)


@pytest.mark.parametrize("path", ["/animate", "/animate/stream"])
def test_a_client_that_goes_away_stops_the_computation_at_the_next_step(bench, path, run, until):
    async def test():
        b = await bench().ready()
        client = b.client(path).start()
        await until(lambda: b.engine.computing)
        client.gone.set()
        await until(lambda: b.host.slot.holder.reason == "disconnected")
        assert b.host.slot.load == 1
        b.engine.allowed.release()
        await client.task
        await until(lambda: b.host.slot.load == 0)
        assert b.engine.computing == 0
        assert b.host.metrics.outcome("disconnected") == 1

    run(test)


def test_a_server_that_drains_finishes_what_is_in_flight_and_refuses_the_rest(bench, run, until):
    async def test():
        b = await bench().ready()
        first = b.client().start()
        await until(lambda: b.engine.computing)
        b.host.drain()
        refused = b.client().start()
        await refused.task
        assert refused.status == 503
        assert b'"draining"' in refused.content
        assert int(dict(refused.sent[0]["headers"])[b"retry-after"]) >= 1
        b.engine.allowed.release(3)
        await first.task
        assert first.status == 200

    run(test)


def test_a_client_that_goes_away_while_sending_ends_its_request_for_the_layers_outside_too(bench, run):
    # BentoML's time limit waits for the first byte of a response, gone client or not.
    async def test():
        b = await bench().ready()
        client = b.client()
        client.body = None
        client.gone.set()
        await client.start().task
        assert client.status == 499
        assert b.host.slot.load == 0
        assert b.host.metrics.outcome("disconnected") == 1

    run(test)


def test_a_failure_of_the_engine_is_a_500_without_its_text_and_frees_the_slot(bench, run):
    async def test():
        b = await bench().ready()
        b.engine.error = RuntimeError("secret detail")
        b.engine.allowed.release()
        client = b.client().start()
        await client.task
        assert client.status == 500
        assert b"secret" not in client.content
        assert b.host.slot.load == 0
        assert b.host.metrics.outcome("failed") == 1

    run(test)


def test_frames_that_are_no_numbers_are_a_500_that_says_so_and_never_a_clip(bench, run):
    async def test():
        b = await bench().ready()
        b.engine.error = NotFiniteError("vae: computed NaN or infinity in float16")
        b.engine.allowed.release()
        client = b.client().start()
        await client.task
        assert client.status == 500
        assert json.loads(client.content) == {
            "error": "vae: computed NaN or infinity in float16",
            "code": "not_finite",
            "field": None,
        }
        assert b.host.slot.load == 0

    run(test)


def test_whatever_escapes_from_the_application_is_a_500(bench, run):
    async def test():
        b = await bench().ready()
        client = b.client("/readyz")
        client.scope["method"] = "GET"

        async def application(*_):
            raise ZeroDivisionError("secret detail")

        b.app.app = application
        await client.start().task
        assert client.status == 500
        assert b"secret" not in client.content

    run(test)


def test_a_server_that_loads_or_drains_refuses_with_503_and_says_when_to_come_back(bench, run):
    async def test():
        b = bench()
        b.host._metrics = b.host._make_metrics()
        for state in (State.LOADING, State.DRAINING):
            b.host.state = state
            client = b.client().start()
            await client.task
            assert client.status == 503
            assert b"retry-after" in dict(client.sent[0]["headers"])

    run(test)


@pytest.mark.parametrize("error", [ModelError("it is damaged"), RuntimeError("it is damaged\nmore"), MemoryError()])
def test_a_model_that_cannot_be_loaded_is_reported_once_on_one_line(bench, error, run):
    async def test():
        b = bench()

        def load():
            raise error

        b.host._load = load
        await b.ready()
        assert b.host.state is State.FAILED
        assert len(b.failures) == 1
        assert "\n" not in b.failures[0]

    run(test)


def test_a_warm_up_ends_when_the_server_is_to_stop(bench, run, until):
    async def test():
        b = bench()
        seen = []

        def warm_up(on_step):
            b.host.drain()
            try:
                on_step(1, 3)
            except Cancelled:
                seen.append("stopped")
                raise

        b.engine.warm_up = warm_up
        await b.ready()
        await until(lambda: seen)
        assert b.failures == []

    run(test)


def test_retry_after_follows_the_speed_of_the_steps(bench, run, until):
    async def test():
        b = await bench().ready()
        b.host._pace.step_s, b.host._pace.tail_s = 4.0, 1.0
        client = b.client().start()
        await until(lambda: b.engine.computing)
        refused = b.client().start()
        await refused.task
        assert int(dict(refused.sent[0]["headers"])[b"retry-after"]) == 13
        b.engine.allowed.release(3)
        await client.task
        assert client.status == 200

    run(test)
