"""Fleets of real proxies on loopback, with small stand-ins for GPU servers, for as long as a test lasts."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import math
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from routing.dispatcher.files import dispatcher_folder
from routing.dispatcher.runtime import Runtime
from routing.envoy.files import edge_folder, write_table
from routing.errors import RoutingError
from routing.fleet import Fleet
from routing.metrics.observation import Page, Target
from routing.metrics.pages import page_url, read_page
from routing.metrics.proxies import Dispatcher
from routing.proxies import Programs, Proxy, write_fleet
from routing.schema import validated
from routing.table import RoutingTable

from ... import ports

JOB = b"a picture and a prompt"
_LINES = {200: "OK", 429: "Too Many Requests", 503: "Service Unavailable"}


@dataclass
class GpuServer:
    """Computes one job at a time and refuses the rest, as a GPU server does. What is computed is time.

    Attributes:
        held: jobs end once this is set, however long that takes, and not after `service_s`. None: they are not held.
        paced: events of a stream are sent when it is released, one each. None: after a quarter of `service_s` each.
        started, finished, refused: jobs, counted.
        connections: that were opened for jobs.
        dies_at: share of a job after which the connection is cut, or None.
        lingers_s: so long a server computes on when its client has left, as one does until its next step ends.
        headers: of the jobs, in order of arrival.
        paths: that take jobs; health: the path that says whether it is ready.
    """

    service_s: float = 0.2
    ready: bool = True
    dies_at: float | None = None
    lingers_s: float = 0.0
    held: asyncio.Event | None = None
    paced: asyncio.Semaphore | None = None
    answer: bytes = b"video"
    paths: tuple[str, ...] = ("/animate", "/animate/stream")
    health: str = "/readyz"
    started: int = 0
    finished: int = 0
    refused: int = 0
    connections: int = 0
    most: int = 0
    draining: bool = False
    connected: int = 0
    busy: int = 0
    address: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    ids: Counter = field(default_factory=Counter)

    async def listen(self, port: int) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.address = f"127.0.0.1:{port}"

    async def close(self) -> None:
        self.server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def __post_init__(self) -> None:
        self._tasks: set[asyncio.Task] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        jobs = 0
        try:
            while True:
                method, path, headers = await self._head(reader)
                length = int(headers.get("content-length", "0"))
                if method == "POST" and path in self.paths:
                    jobs += 1
                    self.connections += jobs == 1
                    self.connected += jobs == 1
                    await self._job(path, headers, length, reader, writer)
                elif path == self.health:
                    self._send(writer, 200 if self.ready else 503)
                else:
                    self._send(writer, 200, {"content-type": "application/json"}, json.dumps(headers).encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self.connected -= jobs > 0
            self._tasks.discard(task)
            writer.close()

    async def _head(self, reader):
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        return method, path, {name.lower(): value for name, value in headers.items()}

    async def _job(self, path, headers, length, reader, writer) -> None:
        self.headers.append(headers)
        self.arrivals.append(time.monotonic())
        if self.draining:
            await reader.readexactly(length)
            self._send(writer, 503, {"retry-after": "5"}, b'{"code": "draining"}')
            return
        if self.busy:
            self.refused += 1
            await reader.readexactly(length)
            self._send(writer, 429, {"retry-after": "1"})
            return
        self.busy += 1
        self.started += 1
        self.ids[headers.get("x-request-id")] += 1
        self.most = max(self.most, self.busy)
        try:
            await reader.readexactly(length)
            if self.dies_at is not None:
                await asyncio.sleep(self.service_s * self.dies_at)
                writer.transport.abort()
                raise ConnectionError
            if path == "/animate/stream":
                await self._stream(writer)
            else:
                await self._compute(reader)
        except ConnectionError:
            await asyncio.sleep(self.lingers_s)
            raise
        finally:
            self.busy -= 1
        self.finished += 1
        if path != "/animate/stream":
            about = {"content-type": "video/mp4", "x-stillmotion-region": "local", "x-length": str(length)}
            self._send(writer, 200, about, self.answer)

    async def _compute(self, reader) -> None:
        gone = asyncio.ensure_future(reader.read(1))
        held = self.held
        ended = asyncio.ensure_future(asyncio.sleep(self.service_s) if held is None else held.wait())
        try:
            await asyncio.wait({gone, ended}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ConnectionError
        finally:
            for one in (gone, ended):
                one.cancel()
            await asyncio.gather(gone, ended, return_exceptions=True)

    async def _stream(self, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for step in range(4):
            await (self.paced.acquire() if self.paced else asyncio.sleep(self.service_s / 4))
            event = f'event: step\ndata: {{"step": {step}}}\n\n'.encode()
            writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    def _send(self, writer, status, headers=None, body=b"") -> None:
        lines = [f"HTTP/1.1 {status} {_LINES[status]}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)


class RunningFleet:
    """A fleet whose proxies run. Its stand-ins answer only while the test's event loop turns.

    Attributes:
        fleet, table, root: what the files were written from, and where.
        servers: stand-ins by region.
        client: sends requests, over as many connections as they need.
    """

    def __init__(self, programs, root: Path, fleet: Fleet, table: RoutingTable) -> None:
        self.programs, self.root, self.fleet, self.table = programs, root, fleet, table
        self.scheme = "https" if fleet.data_plane.tls else "http"
        self.places = fleet.places()
        self.servers: dict[str, list[GpuServer]] = {}
        self.processes: dict[tuple[str, str], subprocess.Popen] = {}
        limits = httpx.Limits(max_connections=500)
        self.client = httpx.AsyncClient(timeout=120, limits=limits, verify=False, trust_env=False)  # noqa: S501

    async def open(self, proxies: list[Proxy], edges: list[str], service_s: float) -> None:
        """Start servers, dispatchers and these edges, each when what it checks is there."""
        for region, place in self.places.items():
            jobs = self.fleet.jobs
            self.servers[region] = [GpuServer(service_s, paths=jobs.paths, health=jobs.ready) for _ in place.servers]
            for server, address in zip(self.servers[region], place.servers, strict=True):
                await server.listen(int(address.rpartition(":")[2]))
        self.proxies = proxies
        dispatchers = [proxy for proxy in proxies if proxy.role == "dispatcher"]
        for proxy in dispatchers:
            self.start(proxy)
        for proxy in dispatchers:
            await self.ready(proxy.region, len(self.servers[proxy.region]))
        for region in edges:
            self.start_edge(region)
        for region in edges:
            await self.until(self.url(region, "/readyz"))

    async def close(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        await asyncio.gather(*(server.close() for server in self.all_servers()))
        await self.client.aclose()

    def url(self, region: str, path: str = "/animate") -> str:
        return f"{self.scheme}://{self.places[region].edge}{path}"

    def dispatcher_url(self, region: str, path: str = "/animate") -> str:
        return f"http://{self.places[region].dispatchers[0].address}{path}"

    async def jobs(self, count: int, url: str, **more) -> list[httpx.Response]:
        """As many jobs at once."""
        return await asyncio.gather(*(self.client.post(url, content=JOB, **more) for _ in range(count)))

    def hold(self, region: str | None = None) -> asyncio.Event:
        """Let jobs of a region, or of all, go on until the event is set."""
        event = asyncio.Event()
        for server in self.all_servers() if region is None else self.servers[region]:
            server.held = event
        return event

    async def crowd(self, count: int, url: str, refused: int = 0, **more) -> list[httpx.Response]:
        """As many jobs at once: none ends before all others are begun, or have been refused if they are so many."""
        begun = self.begun()
        release = self.hold()
        jobs = [asyncio.create_task(self.client.post(url, content=JOB, **more)) for _ in range(count)]
        try:
            await self.holds(
                lambda: self.begun() - begun == count - refused and sum(job.done() for job in jobs) == refused
            )
        finally:
            release.set()
        return await asyncio.gather(*jobs)

    def begun(self) -> int:
        """Jobs that servers have started."""
        return sum(server.started for server in self.all_servers())

    async def holds(self, check, limit_s: float = 60.0):
        """Wait until a check, which may be a coroutine's function, gives something true, and give that."""
        end = time.monotonic() + limit_s
        while True:
            found = check()
            if found := await found if inspect.isawaitable(found) else found:
                return found
            assert time.monotonic() < end, f"not after {limit_s:g} s; logs:\n{self.logs()}"
            await asyncio.sleep(0.02)

    async def counter(self, region: str, name: str) -> int:
        """A counter or gauge of an edge."""
        place = self.places[region]
        text = (await self.client.get(f"http://{place.admin}/stats", params={"filter": f"^{name}$"})).text
        return int(text.rpartition(":")[2]) if text else 0

    async def page(self, proxy: Target, url: str = "") -> Page:
        """What the control loop reads of a proxy's page now."""
        text = (await self.client.get(url or page_url(proxy, f"http://{proxy.address}"))).text
        return read_page(proxy, time.monotonic(), text, [])

    async def dispatcher(self, region: str) -> Dispatcher:
        """What a dispatcher's page says now."""
        found = Dispatcher(Target(region, "dispatcher", self.places[region].dispatchers[0].admin))
        found.take(await self.page(found.proxy), math.inf, [])
        return found

    async def ready(self, region: str, count: int) -> None:
        """Wait until a dispatcher finds so many servers ready, and has checked all that it knows."""

        async def seen() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return (await self.dispatcher(region)).ready == count
            return False

        await self.holds(seen)

    async def line(self, region: str, waiting: int) -> None:
        """Wait until so many jobs wait at a dispatcher."""

        async def seen() -> bool:
            return (await self.dispatcher(region)).waiting == waiting

        await self.holds(seen)

    def runtime(self, region: str) -> Runtime:
        return Runtime.of(dispatcher_folder(self.root, region))

    def publish(self, shares: dict[str, dict[str, float]]) -> list[str]:
        """Write a table with these rows, the others as they were."""
        self.table = make_table({**self.table.shares, **shares}, self.table.version + 1)
        return write_table(self.root, self.fleet, self.table)

    async def taken(self, region: str, name: str, before: int) -> None:
        """Wait until a counter is above what it was."""

        async def above() -> bool:
            return await self.counter(region, name) > before

        await self.holds(above)

    async def dead(self, region: str, count: int) -> None:
        """Wait until an edge knows that so many dispatchers are dead."""

        async def known() -> bool:
            total = await self.counter(region, r"cluster\.jobs\.membership_total")
            return total - await self.counter(region, r"cluster\.jobs\.membership_healthy") == count

        await self.holds(known)

    def all_servers(self) -> list[GpuServer]:
        return [server for servers in self.servers.values() for server in servers]

    def start(self, proxy: Proxy) -> None:
        # Should the tests themselves be killed, no proxy stays.
        tied = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with (proxy.folder / "log.txt").open("wb") as log:
            process = subprocess.Popen([*tied, *self.programs.command(proxy)], stdout=log, stderr=log)
        self.processes[proxy.region, proxy.role] = process

    def start_edge(self, region: str) -> None:
        self.start(Proxy(region, "edge", edge_folder(self.root, region), 1))

    def start_dispatcher(self, region: str) -> None:
        self.start(Proxy(region, "dispatcher", dispatcher_folder(self.root, region)))

    def kill(self, region: str, role: str) -> None:
        process = self.processes.pop((region, role))
        process.kill()
        process.wait()

    async def until(self, url: str, status: int = 200, limit_s: float = 60.0) -> None:
        """Wait until a page answers with this status."""
        end, last = time.monotonic() + limit_s, None
        while time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError):
                last = (await self.client.get(url)).status_code
                if last == status:
                    return
            await asyncio.sleep(0.02)
        pytest.fail(f"{url}: {last} after {limit_s} s; logs:\n{self.logs()}")

    def logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in self.root.rglob("log.txt"))


def fleet_content(gpus: dict[str, int], **data_plane) -> dict:
    """A fleet with these GPUs on free ports, its regions 50 ms from one another."""
    free = iter(ports.free_ports(sum(4 + count for count in gpus.values())))

    def at() -> str:
        return f"127.0.0.1:{next(free)}"

    places = {}
    for name, count in gpus.items():
        dispatcher = {"address": at(), "admin": at(), "servers": [at() for _ in range(count)]}
        places[name] = {"edge": at(), "admin": at(), "dispatchers": [dispatcher] if count else []}
    names = list(gpus)
    return {
        "regions": {name: {"gpus": count} for name, count in gpus.items()},
        "latency_ms": {a: dict.fromkeys(names[i + 1 :], 50) for i, a in enumerate(names) if names[i + 1 :]},
        "service_time_s": 0.2,
        "rings_ms": [100],
        "thresholds": [{"load": 0.75, "ring": 1}],
        "target_load": 0.75,
        # No place in line, unless a test wants some: what happens to refused jobs is seen at once.
        "queue": {"max_wait_s": 0.001},
        "retry": {"attempts": 5, "base_interval_s": 0.02, "max_interval_s": 0.2},
        "data_plane": {"places": places, **data_plane},
    }


def make_table(shares: dict[str, dict[str, float]], version: int = 1) -> RoutingTable:
    return RoutingTable(version=version, generated_at=datetime.now(UTC), shares=shares)


@pytest.fixture(scope="session")
def table_of():
    """`table_of(shares)`: a table."""
    return make_table


@pytest.fixture(scope="session")
def free_ports():
    """`free_ports(count)`: for more listeners than a fleet has by itself."""
    return ports.free_ports


@pytest.fixture(scope="session")
def programs():
    """Envoy and HAProxy."""
    try:
        return Programs.find()
    except RoutingError as error:
        pytest.skip(str(error))


@pytest.fixture
def running(programs, tmp_path):
    """`async with running({"a": 2, "b": 2}, shares, ...) as fleet`: see `RunningFleet`.

    Args of it:
        gpus: by region.
        shares: of the table; rows left out: all at home.
        edges: regions whose edges run; left out: the first's.
        change: of the fleet's content, before it is read.
        service_s: of each job.
        base: folder of certificates and keys.
        emulate_latency: as of `render`.
        jobs: of the fleet's content.
        more: parts of the data plane.
    """

    @contextlib.asynccontextmanager
    async def run(
        gpus,
        shares=None,
        *,
        edges=None,
        change=None,
        service_s=0.2,
        base=tmp_path,
        emulate_latency=False,
        jobs=None,
        **more,
    ):
        content = fleet_content(gpus, **more) | {"jobs": jobs or {}}
        if change is not None:
            change(content)
        fleet = validated(Fleet, content)
        table = make_table({name: {name: 1.0} for name in gpus} | (shares or {}))
        root = tmp_path / "fleet"
        proxies = write_fleet(root, fleet, table, base=base, emulate_latency=emulate_latency)
        world = RunningFleet(programs, root, fleet, table)
        try:
            await world.open(proxies, list(gpus)[:1] if edges is None else edges, service_s)
            yield world
        finally:
            await world.close()

    return run
