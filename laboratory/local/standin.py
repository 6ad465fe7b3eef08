"""`python -m laboratory.local.standin`: stand-ins for GPU servers, one or several in a process.

They have the HTTP face of the real server as far as traffic sees it, and take as long for a job as a distribution says
(`service_times`). They name themselves stand-ins in all that they say. For tests their faults can be set:

    curl -d '{"slowness": 2}' http://127.0.0.1:21004/standin/faults
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from aiohttp import web

from routing.errors import RoutingError
from routing.jobs import Jobs
from routing.schema import validated

from ..service_times import parse as parse_times
from .gpu import NAME, SUFFIX, Faults, Ledger, StandIn


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; then take no more jobs, and end when those in flight have."""
    parser = argparse.ArgumentParser(
        prog="python -m laboratory.local.standin", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--region", required=True, help="that they say they stand in")
    text = "name of the GPU and loopback address, such as us-east-1=127.0.0.1:21004; one or several"
    parser.add_argument("--serve", required=True, action="append", type=_named, metavar="GPU=ADDRESS", help=text)
    parser.add_argument("--service-time", default="0.5", metavar="TIMES", help="see laboratory/service_times.py")
    parser.add_argument("--seed", type=int, default=0, help="of the service times (default: 0)")
    parser.add_argument("--ledger", type=Path, metavar="DIR", help="note each computation there, by request id")
    parser.add_argument("--path", action="append", help="that takes jobs; several times for several")
    parser.add_argument("--ready", help="path that says whether it takes jobs")
    parser.add_argument("--model", default=NAME, metavar="NAME", help=f"in its answers (default: {NAME})")
    parser.add_argument("--faults", default="{}", metavar="JSON", help="that it has from the start")
    options = parser.parse_args(arguments)
    try:
        faults = Faults().changed(options.faults)
        times = parse_times(options.service_time)
        if options.ledger is not None:
            options.ledger.mkdir(parents=True, exist_ok=True)
        given = {"paths": options.path, "ready": options.ready}
        jobs = validated(Jobs, {key: value for key, value in given.items() if value})
        found = []
        for gpu, address in options.serve:
            ledger = Ledger(None if options.ledger is None else options.ledger / f"{gpu}{SUFFIX}")
            generator = random.Random(f"{options.seed} {gpu}")  # noqa: S311  # no secret
            standin = StandIn(gpu, options.region, times, generator, ledger, jobs, faults, options.model)
            found.append((standin, address))
        asyncio.run(serve(found))
    except (RoutingError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return getattr(error, "exit_status", 1)
    return 0


async def serve(servers: Sequence[tuple[StandIn, str]]) -> None:
    """Serve all of them until a signal, and drain."""
    stop, at_once = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # A second one does not wait for jobs.
        loop.add_signal_handler(number, lambda: at_once.set() if stop.is_set() else stop.set())
    served = [_Served(one, Listener(one.answer, address)) for one, address in servers]
    for one in served:
        await one.listener.open()
    watching = [asyncio.create_task(one.watch()) for one in served]
    sys.stderr.write("".join(f"{NAME} {one.gpu} at http://{address}\n" for one, address in servers))
    sys.stderr.flush()
    await stop.wait()
    for one in served:
        one.standin.draining = True
    while any(one.standin.busy for one in served) and not at_once.is_set():  # noqa: ASYNC110  # seldom, and short
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.05)  # the last answers leave
    for task in watching:
        task.cancel()
    for one in served:
        one.listener.cut()


class Listener:
    """A listening socket and its connections.

    Args:
        answer: gives the response to a request, and is cancelled when the client goes away.
        address: IP address and port.
    """

    def __init__(self, answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], address: str) -> None:
        # Connections that nobody uses are closed as uvicorn does, under which the real servers run.
        self._server = web.Server(answer, handler_cancellation=True, access_log=None, keepalive_timeout=5.0)
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._socket: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen.

        Raises:
            OSError: the address is taken.
        """
        loop = asyncio.get_running_loop()
        self._socket = await loop.create_server(self._server, self._host, self._port, backlog=512)

    def cut(self) -> None:
        """Close the socket and all connections at once, as when the process were killed."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()


class _Served:
    """A stand-in and its socket, which can go down for a while."""

    def __init__(self, standin: StandIn, listener: Listener) -> None:
        self.standin, self.listener = standin, listener

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            if self.standin.down_s:
                seconds, self.standin.down_s = self.standin.down_s, 0.0
                self.listener.cut()
                await asyncio.sleep(seconds)
                await self.listener.open()


def _named(text: str) -> tuple[str, str]:
    gpu, equals, address = text.partition("=")
    host, _, port = address.rpartition(":")
    if not equals or not gpu or not host.startswith("127.") or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is no GPU=ADDRESS such as us-east-1=127.0.0.1:21004")
    return gpu, address


if __name__ == "__main__":
    sys.exit(main())
