"""The middleware around an engine that a test holds in its hands: what cannot be timed with a real one."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from pipeline.engine import Animation
from pipeline.errors import Cancelled, ModelError
from serving.endpoints import animate, animate_stream
from serving.exchange import SCOPE_KEY
from serving.host import Host, State
from serving.middleware import AdmissionMiddleware
from serving.settings import Settings

CLIP = np.zeros((2, 16, 16, 3), dtype=np.uint8)


class Engine:
    """Takes a step each time that the test allows one."""

    name = "animator:test"
    runtime = "eager"
    fallback = None
    info = SimpleNamespace(
        steps=3,
        family="f",
        runtime="eager",
        precision="float32",
        passes=3,
        controls=(),
        least_frames=1,
        most_frames=2,
        frames=2,
        fps=8,
    )

    def __init__(self):
        self.allowed = threading.Semaphore(0)
        self.computing = self.most = 0
        self.error = None

    def check(self, request):
        pass

    def warm_up(self, on_step=None):
        return Animation(CLIP, 8, 0, 3, 3, 0.0)

    def animate(self, image, request, on_step=None):
        self.computing += 1
        self.most = max(self.most, self.computing)
        try:
            for step in range(3):
                self.allowed.acquire()
                if self.error:
                    raise self.error
                on_step(step + 1, 3)
            return Animation(CLIP, 8, 1, 3, 3, 0.0)
        finally:
            self.computing -= 1


class Series:
    def __init__(self):
        self.value = 0.0

    def labels(self, **labels):
        return self.__dict__.setdefault(str(sorted(labels.items())), Series())

    def inc(self, amount=1.0):
        self.value += amount

    def set(self, value):
        self.value = value

    observe = inc


class Metrics:
    def __init__(self):
        names = "ready load steps_left load_seconds requests cancelled step_seconds compute_seconds"
        for name in names.split():
            setattr(self, name, Series())

    def describe(self, *_):
        pass

    def count_busy(self, slot):
        pass

    def outcome(self, outcome):
        return self.requests.labels(outcome=outcome).value


class Client:
    """Speaks ASGI to the middleware, one request."""

    def __init__(self, app, path, body, headers):
        self.app, self.body, self.sent, self.gone = app, body, [], asyncio.Event()
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self.scope = {
            "type": "http",
            "asgi": {"spec_version": "2.3"},
            "method": "POST",
            "path": path,
            "headers": raw,
            "query_string": b"",
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
            "server": ("test", 80),
        }

    async def receive(self):
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    def start(self):
        self.task = asyncio.ensure_future(self.app(self.scope, self.receive, self.send))
        return self

    @property
    def status(self):
        return self.sent[0]["status"] if self.sent else None

    @property
    def content(self):
        return b"".join(message.get("body", b"") for message in self.sent[1:])


class Bench:
    def __init__(self, make, **settings):
        self.engine, self.failures = Engine(), []
        self.host = Host(Settings(**settings), lambda: self.engine, self.failures.append, Metrics)

        def endpoint(function):
            async def call(request):
                return await function(self.host, request.scope[SCOPE_KEY])

            return call

        routes = [
            Route("/animate", endpoint(animate), methods=["POST"]),
            Route("/animate/stream", endpoint(animate_stream), methods=["POST"]),
        ]
        self.app = AdmissionMiddleware(Starlette(routes=routes), self.host)
        self.request = make.body()

    async def ready(self):
        self.host.start()
        await until(lambda: self.host.state is not State.LOADING)
        return self

    def client(self, path="/animate"):
        return Client(self.app, path, *self.request)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what it waits for happens in a thread
            await asyncio.sleep(0.002)


@pytest.fixture
def bench(make):
    return lambda **settings: Bench(make, **settings)


def run(test):
    asyncio.run(asyncio.wait_for(test(), 20))


def test_at_the_deadline_the_client_is_answered_at_once_and_the_slot_is_freed_when_the_step_ends(bench):
    async def test():
        b = await bench(deadline_s=0.2).ready()
        late = b.client().start()
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


def test_at_the_deadline_of_a_stream_its_last_event_says_so(bench):
    async def test():
        b = await bench(deadline_s=0.2).ready()
        late = b.client("/animate/stream").start()
        await asyncio.sleep(0.4)
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
def test_a_client_that_goes_away_stops_the_computation_at_the_next_step(bench, path):
    async def test():
        b = await bench().ready()
        client = b.client(path).start()
        await until(lambda: b.engine.computing)
        client.gone.set()
        await asyncio.sleep(0.05)
        assert b.host.slot.load == 1
        b.engine.allowed.release()
        await client.task
        await until(lambda: b.host.slot.load == 0)
        assert b.engine.computing == 0
        assert b.host.metrics.outcome("disconnected") == 1

    run(test)


def test_a_client_that_goes_away_while_sending_ends_its_request_for_the_layers_outside_too(bench):
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


def test_a_failure_of_the_engine_is_a_500_without_its_text_and_frees_the_slot(bench):
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


def test_whatever_escapes_from_the_application_is_a_500(bench):
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


def test_a_server_that_loads_or_drains_refuses_with_503_and_says_when_to_come_back(bench):
    async def test():
        b = bench()
        b.host._metrics = Metrics()
        for state in (State.LOADING, State.DRAINING):
            b.host.state = state
            client = b.client().start()
            await client.task
            assert client.status == 503
            assert b"retry-after" in dict(client.sent[0]["headers"])

    run(test)


@pytest.mark.parametrize("error", [ModelError("it is damaged"), RuntimeError("it is damaged\nmore"), MemoryError()])
def test_a_model_that_cannot_be_loaded_is_reported_once_on_one_line(bench, error):
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


def test_a_warm_up_ends_when_the_server_is_to_stop(bench):
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


def test_retry_after_follows_the_speed_of_the_steps(bench):
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
