"""Holds the model: loads it in the background, computes one animation at a time, says how it stands."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from pipeline.errors import Cancelled, StillmotionError
from pipeline.media import images, video
from pipeline.media.formats import MEDIA_TYPES, Format
from pipeline.serve.engine import Animation, StepListener
from pipeline.serve.manifest import ModelInfo
from pipeline.serve.request import AnimationRequest
from pipeline.spans import listen

from .admission import Slot
from .form import Form, parse
from .logs import request_id
from .marks import make_marker
from .tracing import Trace, Tracing, make_tracing
from .uploads import Uploads

if TYPE_CHECKING:
    from .exchange import Exchange
    from .metrics import Metrics
    from .settings import Settings

logger = logging.getLogger("bentoml.stillmotion")


class Engine(Protocol):
    """What the service needs of a loaded model; `pipeline.serve.engine.Animator` is one."""

    info: ModelInfo
    name: str
    runtime: str
    fallback: str | None

    def check(self, request: AnimationRequest, *, last_image: bool = False) -> None: ...

    def evaluations(self, request: AnimationRequest) -> int: ...

    def animate(
        self,
        image: Image.Image,
        request: AnimationRequest,
        on_step: StepListener | None = None,
        last_image: Image.Image | None = None,
    ) -> Animation: ...

    def warm_up(self, on_step: StepListener | None = None) -> Animation: ...


class State(StrEnum):
    """Of a server, in the order in which it goes through them; FAILED ends the process."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class Prepared:
    """A checked request with its picture: all that can be done for it without the slot.

    Attributes:
        seconds: that the pictures' decoding took.
        last_picture: that the clip ends with, where there is one.
    """

    form: Form
    picture: Image.Image
    seconds: float
    last_picture: Image.Image | None = None


@dataclass(frozen=True)
class Video:
    """An encoded animation.

    Attributes:
        compute_s: decoding of the picture, computation and encoding of the video.
        marks: kinds of marks that say that it is made by AI.
    """

    data: bytes
    format: Format
    animation: Animation
    compute_s: float
    marks: tuple[str, ...] = ()

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[self.format]


class Pace:
    """Moving averages of how long a step takes, and what comes after the last one until the slot is free."""

    def __init__(self, weight: float = 0.3) -> None:
        self._weight = weight
        self.step_s: float | None = None
        self.tail_s: float | None = None

    def step(self, seconds: float) -> None:
        self.step_s = self._mixed(self.step_s, seconds)

    def tail(self, seconds: float) -> None:
        self.tail_s = self._mixed(self.tail_s, seconds)

    def left_s(self, steps: int) -> float:
        return steps * (self.step_s or 0.0) + (self.tail_s or 0.0)

    def _mixed(self, old: float | None, new: float) -> float:
        return new if old is None else (1 - self._weight) * old + self._weight * new


class Host:
    """One server's model and its slot.

    Args:
        settings: of the service.
        load: gives the model; called once, in the compute thread. Raises ModelError.
        on_failure: called with one line when the model cannot be served; does not return in a server.
        make_metrics: called at `start`, in the process that serves.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Engine],
        on_failure: Callable[[str], None],
        make_metrics: Callable[[], Metrics],
    ) -> None:
        self.settings = settings
        self._load, self._on_failure, self._make_metrics = load, on_failure, make_metrics
        self.slot = Slot(on_change=self._load_changed)
        self.state = State.LOADING
        self._engine: Engine | None = None
        self._metrics: Metrics | None = None
        self._pace = Pace()
        self._steps_left = 0
        self.tracing = Tracing()
        self.marker = make_marker(settings)
        self.uploads = Uploads(max(settings.max_uploads_bytes, settings.max_body_bytes), settings.max_uploads)
        # A thread of its own: nothing else computes there, and what PyTorch keeps for a thread stays warm.
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="compute")
        # One picture is decoded, and one video encoded, at a time: the memory for both has a bound.
        self.preparer = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._encoding: Future[Video] | None = None

    @property
    def metrics(self) -> Metrics:
        if self._metrics is None:
            raise RuntimeError("the host has not been started")
        return self._metrics

    @property
    def ready(self) -> bool:
        return self.state is State.READY

    @property
    def draining(self) -> bool:
        return self.state is State.DRAINING

    @property
    def engine(self) -> Engine:
        """The loaded model.

        Raises:
            RuntimeError: there is none yet; requests are refused until there is.
        """
        if self._engine is None:
            raise RuntimeError("the model is not loaded")
        return self._engine

    @property
    def loaded(self) -> bool:
        return self._engine is not None

    def start(self) -> None:
        """Load and warm up in the background."""
        # The computing thread holds Python's lock much of the time. Whoever else wants it, for a refusal or a health
        # check, waits for 5 ms by default, and some twice for one request.
        sys.setswitchinterval(0.001)
        self._metrics = self._make_metrics()
        self.tracing = make_tracing(self.settings)
        self.executor.submit(self._prepare)

    def drain(self) -> None:
        """Take no further requests; what is in flight goes on."""
        self.state = State.DRAINING
        self.metrics.ready.set(0)

    def wait_s(self) -> float:
        """Seconds until the slot is likely to be free: the steps left at the speed of those before."""
        return self._pace.left_s(self._steps_left)

    def wait_until_idle(self) -> None:
        """Block until nothing is computed or encoded."""
        self.slot.wait_until_free()
        self._wait_for_encoder()

    def prepare(self, body: bytes, content_type: str, trace: Trace) -> Prepared:
        """Check a request and decode its picture, in the thread for that (`preparer`).

        Raises:
            InputError: with the field and the limit.
        """
        with trace.part("validate"):
            form = parse(body, content_type, self.settings, self.engine.info)
            self.engine.check(form.request, last_image=form.last_image is not None)
        began, limits = time.perf_counter(), self.settings.picture_limits
        with trace.part("decode picture"):
            picture = images.decode(form.image, limits)
            last = None if form.last_image is None else images.decode(form.last_image, limits)
        return Prepared(form, picture, time.perf_counter() - began, last)

    def compute(self, exchange: Exchange, on_step: StepListener | None, queued_ns: int | None = None) -> Future[Video]:
        """Compute one animation, in the compute thread (`executor`), and hand it to the thread that encodes.

        The slot is free when this returns: the next animation is computed while this one is encoded. An encoder that
        is not done with the one before keeps the slot taken, so that no more than one clip waits.

        Args:
            exchange: the request.
            on_step: told of progress.
            queued_ns: when it was given to the thread (`time.time_ns`), for its trace.

        Returns:
            The video to be. Raises Cancelled where nobody waits for it any more.

        Raises:
            Cancelled: nobody waits for it any more.
        """
        request_id.set(exchange.request_id)
        if queued_ns is not None:
            exchange.trace.waited("queue", queued_ns)
        with exchange.trace.around("compute") as listener, listen(listener):
            return self._compute(exchange, on_step)

    def _compute(self, exchange: Exchange, on_step: StepListener | None) -> Future[Video]:
        engine, metrics = self.engine, self.metrics
        ticket, prepared = exchange.ticket, exchange.prepared
        began = last = time.perf_counter()

        def after_step(done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            metrics.step_seconds.observe(now - last)
            self._pace.step(now - last)
            last = now
            self._show_left(total - done)
            metrics.count_busy(self.slot)
            ticket.check()
            if on_step is not None:
                on_step(done, total)

        with ticket.computing():
            logger.info("computing begins")
            try:
                request = prepared.form.request
                total = engine.evaluations(request)
                self._show_left(total)
                if on_step is not None:
                    on_step(0, total)
                last = time.perf_counter()
                animation = engine.animate(prepared.picture, request, after_step, prepared.last_picture)
                ticket.check()
                if animation.runtime != engine.runtime:
                    metrics.fallbacks.labels(reason="shape").inc()
                self._wait_for_encoder()
                self._pace.tail(time.perf_counter() - last)
            except Cancelled:
                self._count_cancelled(exchange)
                raise
            else:
                self._encoding = encoding = self._encoder.submit(self._encode, exchange, animation, began)
                return encoding
            finally:
                how = f" ({ticket.reason})" if ticket.reason else ""
                logger.info("computing ended after %.3f s%s", time.perf_counter() - began, how)
                self._show_left(0)

    def _encode(self, exchange: Exchange, animation: Animation, began: float) -> Video:
        request_id.set(exchange.request_id)
        ticket, prepared = exchange.ticket, exchange.prepared
        try:
            ticket.check()
            with exchange.trace.part("encode video"):
                data = video.encode(animation.clip, animation.fps, prepared.form.format)
            with exchange.trace.part("mark video"):
                data = self.marker.mark(data, prepared.form.format, self.engine.name)
            ticket.check()
        except Cancelled:
            self._count_cancelled(exchange)
            raise
        compute_s = prepared.seconds + time.perf_counter() - began
        self.metrics.compute_seconds.observe(compute_s)
        exchange.finished = True
        marks = self.marker.kinds(prepared.form.format)
        for kind in marks:
            self.metrics.marks.labels(kind=kind).inc()
        return Video(data, prepared.form.format, animation, compute_s, marks)

    def _wait_for_encoder(self) -> None:
        if (encoding := self._encoding) is not None:
            wait([encoding])

    def _count_cancelled(self, exchange: Exchange) -> None:
        self.metrics.cancelled.labels(reason=exchange.ticket.reason or "unknown").inc()

    def _prepare(self) -> None:
        began = time.perf_counter()
        try:
            engine = self._load()
            logger.info("%s is loaded after %.1f s; warming up", engine.name, time.perf_counter() - began)
            last = time.perf_counter()

            def after_step(done: int, total: int) -> None:
                nonlocal last
                if self.state is State.DRAINING:
                    raise Cancelled("the server is stopping")
                # The first step pays for what later ones find ready.
                if done > 1 or total == 1:
                    self._pace.step(time.perf_counter() - last)
                last = time.perf_counter()

            animation = engine.warm_up(after_step)
            self._pace.tail(time.perf_counter() - last)
            video.encode(animation.clip, animation.fps, "mp4")
        except Cancelled:
            return
        except StillmotionError as error:
            self._fail(str(error))
        except Exception as error:  # PyTorch and its libraries raise anything
            logger.debug("loading failed", exc_info=True)
            self._fail(f"the model could not be made ready: {type(error).__name__}: {first_line(error)}")
        else:
            self._engine = engine
            self.metrics.describe(self.settings.region, engine.name, engine.info, engine.runtime)
            if engine.fallback is not None:
                logger.warning("%s", engine.fallback)
                self.metrics.fallbacks.labels(reason="load").inc()
            self.metrics.load_seconds.set(time.perf_counter() - began)
            if self.state is State.LOADING:
                self.state = State.READY
                self.metrics.ready.set(1)
            logger.info("%s is ready after %.1f s", engine.name, time.perf_counter() - began)

    def _fail(self, message: str) -> None:
        self.state = State.FAILED
        self._on_failure(message)

    def _show_left(self, steps: int) -> None:
        self._steps_left = steps
        self.metrics.steps_left.set(steps)

    def _load_changed(self, load: int) -> None:
        self.metrics.load.set(load)
        if load:
            # Until the computation says otherwise: a refusal in between must not promise the next second.
            self._steps_left = self.engine.info.evaluations if self.loaded else 0


def first_line(error: BaseException) -> str:
    """Of an error's text; empty where it has none."""
    return (str(error).strip().splitlines() or [""])[0]
