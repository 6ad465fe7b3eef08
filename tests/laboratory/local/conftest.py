"""Fleets on this machine, real but for their GPU servers, for as long as a test lasts."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from laboratory.arrivals import poisson
from laboratory.local.client import Summary, send
from laboratory.local.gpu import computations, read
from laboratory.local.launch import Options, running
from laboratory.local.layout import CONTROL, LEDGERS
from laboratory.local.processes import marked
from laboratory.local.records import read_state, read_wanted
from laboratory.local.under_test import busy_seconds
from routing.control.publishing import TABLE
from routing.errors import RoutingError
from routing.fleet import Fleet
from routing.proxies import Programs
from routing.schema import validated
from routing.table import RoutingTable

REGIONS = ("a", "b", "c")
USUAL = Options(prometheus="no", ledgers=True, interval_s=1.0)


@pytest.fixture(scope="session")
def programs():
    """Envoy and HAProxy; without them there is no fleet."""
    try:
        return Programs.find()
    except RoutingError as error:
        pytest.skip(str(error))


def make_fleet(gpus=4, service_s=0.5, **more) -> Fleet:
    """Three regions: b is in ring 1 of a, c in ring 2."""
    content = {
        "regions": {name: {"gpus": gpus} for name in REGIONS},
        "latency_ms": {"a": {"b": 20, "c": 60}, "b": {"c": 40}},
        "service_time_s": service_s,
        "rings_ms": [30, 70],
        "thresholds": [{"load": 0.75, "ring": 1}, {"load": 0.85, "ring": 2}],
        "target_load": 0.75,
        "smoothing_s": 10.0,
        "metrics": {"time_limit_s": 0.8},
        "retry": {"attempts": 12, "base_interval_s": 0.05, "max_interval_s": 1.0},
        "data_plane": {"limits": {"edge_threads": 1}, "access_log": False},
    }
    return validated(Fleet, {**content, **more})


class LocalFleet:
    """A fleet that runs.

    Attributes:
        started: what `running` gave.
        sent: all outcomes so far.
    """

    def __init__(self, started) -> None:
        self.started, self.folder, self.fleet = started, started.folder, started.layout.fleet
        self.sent = []
        self._known = set()
        # One for all that is asked: a new one reads all certificates of the machine.
        self.pages = httpx.Client(timeout=20, trust_env=False)

    def rps(self, loads) -> dict[str, float]:
        """Requests per second that are so large a share of each region's capacity."""
        loads = loads if isinstance(loads, dict) else dict.fromkeys(REGIONS, loads)
        return {name: load * self.fleet.capacity_rps(name) for name, load in loads.items()}

    async def send(self, arrivals, **more):
        """Send, and remember."""
        outcomes = await send(arrivals, self.started.edges, **more)
        self.sent += outcomes
        return outcomes

    async def poisson(self, loads, seconds, seed=1):
        return await self.send(poisson(self.rps(loads), seconds, random.Random(seed)))

    @contextlib.asynccontextmanager
    async def under(self, loads, least_s=0.0, seed=1):
        """Traffic while the block runs, and for so long; gives the list that outcomes come into.

        Their times count from the beginning of all of it.
        """
        outcomes, sent, over = [], [], asyncio.Event()
        rps, generator, began = self.rps(loads), random.Random(seed), time.monotonic()

        async def traffic():
            while not over.is_set() or time.monotonic() < began + least_s:
                since_s = time.monotonic() - began
                watch = functools.partial(_note, outcomes, since_s)
                sent.append(asyncio.create_task(self.send(poisson(rps, 1.0, generator), watch=watch)))
                await asyncio.sleep(1.0)

        task = asyncio.create_task(traffic())
        try:
            await self.until(lambda: outcomes, what="a first outcome")
            yield outcomes
            over.set()
            await task
            await asyncio.gather(*sent)
        finally:
            for one in (task, *sent):
                one.cancel()

    @contextlib.asynccontextmanager
    async def judged(self, found):
        """What fails in the block is void, and no fault of the fleet, where the machine had no time for it.

        Args:
            found: summary of the requests.
        """
        try:
            yield
        except AssertionError:
            late, busy_s = found.late / max(1, found.requests), await busy_seconds(self.started)
            if late > 0.05 or busy_s > 1.1 * self.fleet.service_time_s:
                pytest.skip(f"void: {late:.0%} of the requests left late, and jobs took {busy_s:.2f} s")
            raise

    def begin(self):
        """What was before is of no interest any more."""
        self.sent = []
        self._known = set(computations(self.folder / LEDGERS))

    def pid(self, name):
        """Of a part; None while it does not run."""
        return next(one.pid for one in read_state(self.folder).components if one.name == name)

    def starts(self, name):
        return next(one.starts for one in read_state(self.folder).components if one.name == name)

    def kill(self, *names):
        for name in names:
            os.kill(self.pid(name), signal.SIGKILL)

    def parts(self, region):
        """Names of all that is in a region."""
        return [one.name for one in read_wanted(self.folder) if one.region == region]

    def status(self):
        """What the control loop says; nothing while it does not answer."""
        try:
            return self.pages.get(f"{self.started.about.control}/status.json").json()
        except (httpx.HTTPError, ValueError):
            return {}

    async def faults(self, servers, **order):
        """Set faults of stand-ins, by URL."""
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            for url in servers:
                (await client.post(f"{url}/standin/faults", json=order)).raise_for_status()

    def servers(self, region):
        """URLs of a region's stand-ins."""
        return list(self.started.about.regions[region].gpu_servers.values())

    async def until(self, condition, limit_s=120.0, what=""):
        """Wait until something holds, and give it."""
        end = time.monotonic() + limit_s
        while True:
            with contextlib.suppress(StopIteration, KeyError, AttributeError):
                if found := condition():
                    return found
            assert time.monotonic() < end, f"not after {limit_s} s: {what}; {self.logs()}"
            await asyncio.sleep(0.1)

    def table(self):
        return RoutingTable.read(self.folder / CONTROL / TABLE, self.fleet)

    async def gpu_requests(self):
        """Requests that GPU servers have had since they started."""
        total = 0
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            for region in REGIONS:
                for url in self.servers(region):
                    total += sum((await client.get(f"{url}/standin")).json()["requests"].values())
        return total

    def check_conserved(self, lost=0):
        """Each request has one answer, each animation one computation, and no request has two; rows sum to one.

        Args:
            lost: so many computations may have no answer, because their server was killed.
        """
        begun = {name: count for name, count in computations(self.folder / LEDGERS).items() if name not in self._known}
        assert max(begun.values(), default=0) <= 1, [name for name, count in begun.items() if count > 1]
        ended = Counter(name for event, name, _ in read(self.folder / LEDGERS) if event == "ended")
        answered = [one.request_id for one in self.sent if one.ok]
        assert len(set(answered)) == len(answered)
        assert set(answered) <= set(ended)
        assert len(begun) - len(answered) <= lost
        if (self.folder / CONTROL / TABLE).exists():
            for row in self.table().shares.values():
                assert sum(row.values()) == pytest.approx(1, abs=1e-6)

    def logs(self):
        return (self.folder / "logs" / "supervisor.log").read_text()[-2000:]


def _note(outcomes, since_s, one):
    outcomes.append(dataclasses.replace(one, at_s=since_s + one.at_s))


@pytest.fixture
def local_fleet(programs, tmp_path):  # noqa: ARG001  # without it this is skipped
    """`with local_fleet(options, gpus=4, ...) as fleet`: see `LocalFleet` and `make_fleet`."""

    @contextlib.contextmanager
    def run(options=None, folder=None, alone=None, **more):
        folder = folder or tmp_path / "fleet"
        options = options or dataclasses.replace(USUAL, alone=alone)
        with running(make_fleet(**more), Path(folder) / "none.yaml", folder, options) as started:
            yield LocalFleet(started)
        assert marked(folder.resolve()) == []

    return run


@pytest.fixture(scope="module")
def started_fleet(programs, tmp_path_factory):  # noqa: ARG001  # without it this is skipped
    """A fleet for all tests of a module, each of which leaves it as it should be."""
    folder = tmp_path_factory.mktemp("shared") / "fleet"
    with running(make_fleet(), folder / "none.yaml", folder, USUAL) as started:
        yield LocalFleet(started)
    assert marked(folder.resolve()) == []


@pytest.fixture
def shared_fleet(started_fleet):
    """`started_fleet`, which knows of nothing that was before."""
    started_fleet.begin()
    return started_fleet


@pytest.fixture(scope="session")
def summarised():
    return Summary.of
