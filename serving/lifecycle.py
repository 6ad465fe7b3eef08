"""How a server starts, gives up, and stops.

`bentoml serve` is two processes: a supervisor, and a worker in which the service lives. A worker that dies
is started again every few seconds for ever, so a model that cannot be loaded must end the supervisor too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.errors import StillmotionError
from pipeline.quiet import quiet_libraries
from pipeline.serve.engine import Animator
from pipeline.serve.manifest import ModelInfo
from pipeline.serve.store import MODEL_NAME, resolve

from .logs import escape_text, use_json
from .marks import make_marker
from .settings import DEFAULT_MODEL, Settings, SettingsError
from .tracing import check_tracing

if TYPE_CHECKING:
    from .host import Host

# Tells the worker which process to end; set by the supervisor, inherited by the worker.
_SUPERVISOR = "STILLMOTION_SUPERVISOR_PID"


def exit_with(message: str) -> NoReturn:
    """End this process with 1 after one line for a person."""
    sys.stderr.write(f"stillmotion: {message}\n")
    sys.stderr.flush()
    raise SystemExit(1)


def settings_or_exit() -> Settings:
    """The settings of this environment; ends the process where they are wrong."""
    try:
        settings = Settings.from_environment(os.environ)
        check_tracing(settings)
        make_marker(settings)
    except SettingsError as error:
        exit_with(str(error))
    if settings.log == "json":
        use_json(settings.region)
    else:
        escape_text()
    return settings


def model_name(settings: Settings, service: Any) -> str:
    """Tag or folder of the model to serve: as set, else as pinned in the service's Bento, else the latest."""
    if settings.model is not None:
        return settings.model
    for model in service.bento.info.all_models if service.bento else ():
        if model.tag.name == MODEL_NAME:
            return str(model.tag)
    return DEFAULT_MODEL


def check_deployment(name: str) -> None:
    """In the supervisor, before there is a worker: the model is there and can be read.

    Its digests are checked by the worker while it loads, since that takes a while for a large model.
    """
    try:
        _, folder = resolve(name)
        ModelInfo.read(folder)
    except StillmotionError as error:
        exit_with(str(error))
    os.environ[_SUPERVISOR] = str(os.getpid())
    signal.signal(signal.SIGUSR1, _give_up)


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(1)


def load(name: str, settings: Settings) -> Animator:
    """The model, checked against its digests.

    Raises:
        ModelError: missing, damaged, changed, or of an unknown family.
    """
    quiet_libraries()
    # Before PyTorch is loaded. Threads that spin for long while they wait take the processors from whatever else runs:
    # beside another process a warm-up then takes 40 s instead of 4.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    tag, folder = resolve(name)
    animator = Animator.load(folder, tag, settings.device, settings.text_encoder)
    animator.pipe.text_encoding.remembered = settings.text_cache
    return animator


def fail(message: str) -> None:
    """In the worker: the model cannot be served. Ends the worker and its supervisor with 1."""
    sys.stderr.write(f"stillmotion: {message}\n")
    sys.stderr.flush()
    supervisor = os.environ.get(_SUPERVISOR, "")
    # Only a parent: a process id may by now belong to somebody else.
    if supervisor.isdigit() and int(supervisor) == os.getppid():
        os.kill(int(supervisor), signal.SIGUSR1)
    os._exit(1)


def drain_on_signals(host: Host) -> None:
    """On the first SIGTERM or SIGINT take no more requests, let the one in flight end, then stop the server.

    Called in the event loop's thread after the server has put its own handlers in place. A second signal
    stops the server at once.
    """
    loop = asyncio.get_running_loop()

    def install(number: signal.Signals) -> None:
        previous = signal.getsignal(number)
        if not callable(previous):
            return

        def handle(got: int, frame: FrameType | None) -> None:
            if host.draining:
                previous(got, frame)
                return
            host.drain()
            loop.call_soon_threadsafe(_stop_when_idle, host, lambda: previous(got, None))

        signal.signal(number, handle)

    for number in (signal.SIGTERM, signal.SIGINT):
        install(number)


def _stop_when_idle(host: Host, stop: Callable[[], None]) -> None:
    def stop_now(done: asyncio.Future[None]) -> None:
        _waiting.discard(done)
        stop()

    # What is still arriving will not be computed.
    host.uploads.interrupt()
    task = asyncio.ensure_future(asyncio.to_thread(host.wait_until_idle))
    _waiting.add(task)
    task.add_done_callback(stop_now)


# An event loop keeps only weak references to its tasks.
_waiting: set[asyncio.Future[None]] = set()
