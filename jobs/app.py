"""Puts the service together, and runs it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from . import page
from .api import Api, guarded
from .clock import Clock
from .dispatch import Dispatcher
from .errors import ApiError, JobsError, SettingsError, StorageError
from .files import Files
from .limits import Limits
from .metrics import Metrics
from .outside import Outside
from .settings import Settings
from .store import Store
from .submission import Reader
from .upstream import Upstream
from .webhooks import Courier

logger = logging.getLogger("stillmotion.jobs")


def make_app(settings: Settings, store: Store, files: Files) -> Starlette:
    """Return the service; its work begins and ends with the application's lifespan."""
    metrics = Metrics()
    key = settings.upstream_key.get_secret_value() if settings.upstream_key else None
    upstream = Upstream(settings.upstream, key, settings.start_s, settings.compute_s)
    limits, outside = Limits(upstream), Outside(private=settings.private_addresses)
    clock = Clock(store.now)
    dispatcher = Dispatcher(settings, store, files, upstream, limits, metrics, clock)
    courier, fleet = Courier(settings, store, outside, metrics, clock), page.Fleet(settings.control)
    api = Api(settings, store, files, limits, Reader(settings, limits, outside), dispatcher, metrics, clock)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        with contextlib.suppress(StorageError):  # it will be asked again
            await asyncio.to_thread(clock.look)
        dispatcher.start()
        sending = asyncio.create_task(courier.run())
        try:
            yield
        finally:
            await dispatcher.stop()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            for client in (upstream, outside, fleet):
                await client.close()

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        try:
            await asyncio.to_thread(store.webhooks_left)
        except StorageError as error:
            return PlainTextResponse(f"{error.said}\n", 503)
        return PlainTextResponse("ready\n")

    async def series(_: Request) -> Response:
        totals = await asyncio.to_thread(store.totals)
        left = await asyncio.to_thread(store.webhooks_left)
        return Response(metrics.page(totals, len(dispatcher.flights), left), media_type=CONTENT_TYPE_LATEST)

    async def odd(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            reply: Response = ApiError(405, "method_not_allowed", "not with this method").response()
            reply.headers.update(error.headers or {})
            return reply
        return ApiError(error.status_code, "not_found", "there is nothing at this path").response()

    own = [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", guarded(series))]
    routes = [*own, *api.routes(), *page.routes(settings, store, api, limits, dispatcher, fleet)]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: odd})
    app.router.redirect_slashes = False  # Starlette's redirect names the host that the request named, whoever that is
    return app


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder for this process.

    Raises:
        SettingsError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise SettingsError(f"data: {folder} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            message = f"data: another job service uses {folder}; several share a PostgreSQL (setting: database)"
            raise SettingsError(message) from error
        yield


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens there.

    Raises:
        SettingsError: the address is taken, or not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"host, port: cannot listen at {host}:{port}: {error}") from error


def serve(settings: Settings) -> None:
    """Run the service until it is stopped.

    Raises:
        JobsError: it cannot start.
    """
    with contextlib.ExitStack() as stack:
        if settings.database is None:
            stack.enter_context(alone(settings.data))
        files = Files(settings.files_url)
        store = Store(settings.database_url, lambda name: settings.holder(name).share)
        stack.callback(store.close)
        try:
            store.create()
            if store.is_sqlite:
                store.lapse_all()
        except StorageError as error:
            raise JobsError(f"database: {error}") from error
        sock = stack.enter_context(contextlib.closing(listening(settings.host, settings.port)))
        host, port = sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        logger.info("jobs at http://%s:%d/v1/videos, page at http://%s:%d/ui/", shown, port, shown, port)
        config = uvicorn.Config(
            make_app(settings, store, files),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=10,
        )
        server = uvicorn.Server(config)

        def stop(*_: object) -> None:
            # Before uvicorn listens to signals itself; and after, when it raises again what stopped it.
            server.should_exit = True

        signal.signal(signal.SIGTERM, stop)
        server.run([sock])
