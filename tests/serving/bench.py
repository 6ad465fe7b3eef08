"""The middleware around an engine that a test holds in its hands, and a loop whose clock it puts forward."""

import asyncio
import threading

import numpy as np
from starlette.applications import Starlette
from starlette.routing import Route

from pipeline.serve.engine import Animation
from pipeline.serve.manifest import ModelInfo
from serving.endpoints import animate, animate_stream
from serving.exchange import SCOPE_KEY
from serving.host import Host, State
from serving.middleware import AdmissionMiddleware
from serving.settings import Settings

CLIP = np.zeros((2, 16, 16, 3), dtype=np.uint8)
INFO = ModelInfo(
    teacher="none", family="f", steps=3, evaluations=3, passes=3, guidance_scale=None, image_guidance_scale=None,
    guidance_distilled=True, runtime="eager", precision={"default": "float32"}, frames=2, least_frames=1,
    most_frames=2, sizes=((16, 16),), fps=8,
)  # fmt: skip


class Engine:
    """Takes a step each time that the test allows one."""

    name = "animator:test"
    runtime = "eager"
    fallback = None
    info = INFO

    def __init__(self):
        self.allowed = threading.Semaphore(0)
        self.computing = self.most = 0
        self.error = None

    def check(self, request, *, last_image=False):
        pass

    def evaluations(self, request):
        return 3

    def warm_up(self, on_step=None):
        return Animation(CLIP, 8, 0, 3, 3, 0.0)

    def animate(self, image, request, on_step=None, last_image=None):
        self.computing += 1
        self.most = max(self.most, self.computing)
        try:
            for step in range(3):
                assert self.allowed.acquire(timeout=900)  # a thread that waits for ever would keep the program
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
        names = "ready load steps_left load_seconds requests cancelled marks step_seconds compute_seconds"
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
        self.read = 0
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        asked = {"method": "POST", "path": path, "headers": raw, "query_string": b"", "root_path": ""}
        spoken = {"type": "http", "asgi": {"spec_version": "2.3"}, "http_version": "1.1", "scheme": "http"}
        self.scope = {**asked, **spoken, "server": ("test", 80)}

    async def receive(self):
        self.read += 1
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
    """Wait for a condition; where it never holds, the test's own limit ends it."""
    while not condition():  # noqa: ASYNC110  # what it waits for happens in a thread
        await asyncio.sleep(0.002)


class Loop(asyncio.SelectorEventLoop):
    """Its clock is put forward by the test, so that limits pass when the test says and at no other time."""

    ahead_s = 0.0

    def time(self):
        return super().time() + self.ahead_s


def put_clock_forward(seconds):
    """Let a limit of so many seconds pass now; to be called in a `Loop`."""
    asyncio.get_running_loop().ahead_s += seconds
