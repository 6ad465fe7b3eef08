"""Starting a fleet on this machine, and waiting until it is ready."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import httpx

from routing.console import tell
from routing.control.publishing import TABLE
from routing.errors import InputError, RoutingError
from routing.fleet import Fleet
from routing.load import Load
from routing.planner import plan
from routing.proxies import Programs, write_fleet
from routing.table import RoutingTable

from ..machine import versions
from ..service_times import ServiceTimes
from ..service_times import parse as parse_times
from . import programs
from .layout import CONTROL, LEDGERS, PROXIES, Layout, Reservation, ports_needed, reserve
from .processes import MARK, down, of_fleet, remove_leftovers
from .records import LOCK, LOGS, About, Component, RegionAbout, Running, read_state, write_wanted
from .report import dispatcher_now
from .supervisor import RELEASED

_MOST_STARTS = 4
"""A part that has been started so often before the fleet is ready does not come up by itself."""
# A part that fails is known by its starts. These limits are for one that hangs, and lie far above what a machine with
# much other work takes.
_BEGUN_S = 120.0
_READY_S = {"standin": (300.0, 0.3), "bentoml": (600.0, 60.0)}  # for all of them, and more for each GPU server


@dataclass(frozen=True)
class Options:
    """How a fleet is started.

    Attributes:
        servers: what its GPU servers are.
        model: of real servers; None: the newest of the store.
        service_time: of stand-ins, as `laboratory.service_times` has it; None: always the fleet's `service_time_s`.
        prometheus: `auto` starts one where it is installed.
        port_base: first port; None: the first that are free.
        control: whether the control loop runs; without it the table stays as it is.
        interval_s: of the control loop.
        control_command: instead of the usual one; for tests.
        table: to begin with; None: the last good one of this folder, or all at home.
        seed: of the service times.
        ledgers: whether stand-ins note each computation.
        alone: whether each stand-in has a process of its own, so that it can be killed; None: where they are few.
        ready_s: time for all to be ready; None: by kind of server.
    """

    servers: programs.Servers = "standin"
    model: str | None = None
    service_time: str | None = None
    prometheus: Literal["auto", "no"] = "auto"
    port_base: int | None = None
    control: bool = True
    interval_s: float = 2.0
    control_command: tuple[str, ...] = ()
    table: RoutingTable | None = None
    seed: int = 0
    ledgers: bool = False
    alone: bool | None = None
    ready_s: float | None = None


@dataclass(frozen=True)
class Started:
    """A fleet that runs.

    Attributes:
        about: where it is.
        layout: likewise, with its fleet file.
        supervisor: its process, our child.
        lifeline: descriptor; the fleet ends when this is closed without a word. -1: it runs by itself.
    """

    about: About
    layout: Layout
    supervisor: subprocess.Popen[bytes]
    lifeline: int

    @property
    def folder(self) -> Path:
        """Of the fleet."""
        return self.layout.folder

    @property
    def edges(self) -> dict[str, str]:
        """Where to send requests, by region."""
        return {name: region.edge for name, region in self.about.regions.items()}


def up(fleet: Fleet, file: Path, folder: Path, options: Options, *, attached: bool = False) -> Started:
    """Start a fleet, and wait until it is ready.

    Args:
        fleet: as read.
        file: that it was read from.
        folder: for its files, logs and state.
        options: how.
        attached: it ends with this process.

    Raises:
        RoutingError: one runs there already, something is not installed or does not start; nothing is left running.
        InputError: an option cannot be used.
    """
    folder = folder.resolve()
    lock = _lock(folder)
    try:
        remove_leftovers(folder)
        layout, reservation = _laid_out(fleet, file, folder, options)
        try:
            installed = Programs.find()
            components = _prepare(layout, options, installed)
            about = _about(layout, file, options, components, installed)
            about.write(folder)
            write_wanted(folder, tuple(components))
            supervisor, lifeline = _supervise(folder, lock, reservation)
        finally:
            reservation.release()  # the supervisor has it now
    finally:
        os.close(lock)
    try:
        _wait(layout, about, options)
    except BaseException:
        _end(folder, supervisor, lifeline)
        raise
    if not attached:
        os.write(lifeline, RELEASED)
        os.close(lifeline)
        lifeline = -1
    return Started(about, layout, supervisor, lifeline)


@contextlib.contextmanager
def running(fleet: Fleet, file: Path, folder: Path, options: Options) -> Iterator[Started]:
    """A fleet that runs while the block does, and ends with this process at the latest."""
    started = up(fleet, file, folder, options, attached=True)
    try:
        yield started
    finally:
        _end(started.folder, started.supervisor, started.lifeline)


def _end(folder: Path, supervisor: subprocess.Popen[bytes], lifeline: int) -> None:
    os.close(lifeline)
    down(folder)
    supervisor.wait()


def _lock(folder: Path) -> int:
    """The right to run a fleet in this folder, which the supervisor inherits."""
    try:
        (folder / LOGS).mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RoutingError(f"{folder}: cannot be used ({error.strerror})") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        about = None
        with contextlib.suppress(InputError):  # damaged: then without what it says
            about = About.read(folder)
        what = f", of {about.fleet_file}, since {about.started_at}" if about else ""
        text = f"a fleet runs there already{what}; end it with `fleet down`, or choose another --dir"
        raise RoutingError(f"{folder}: {text}") from None
    return file


def _laid_out(fleet: Fleet, file: Path, folder: Path, options: Options) -> tuple[Layout, Reservation]:
    mean_s: float | None = None
    if options.servers == "standin":
        mean_s = _service_time(fleet, options).mean_s or 0.001
    if any(len(place.dispatchers) > 1 for place in fleet.data_plane.places.values()):
        tell("note: each region has one dispatcher here, whatever the fleet file says")
    reservation = reserve(ports_needed(fleet), options.port_base)
    try:
        return Layout.of(fleet, folder, reservation.first, file.resolve().parent, mean_s), reservation
    except BaseException:
        reservation.release()
        raise


def _service_time(fleet: Fleet, options: Options) -> ServiceTimes:
    return parse_times(options.service_time or f"{fleet.service_time_s!r}")


def _prepare(layout: Layout, options: Options, installed: Programs) -> list[Component]:
    """Write all files, and say what is to run."""
    layout.write_fleet_file()
    table = options.table or _first_table(layout)
    found = write_fleet(layout.folder / PROXIES, layout.fleet, table, emulate_latency=True)
    if options.servers == "standin":
        service_time = _service_time(layout.fleet, options).text
        how = programs.StandIns(service_time, options.seed, options.ledgers, options.alone)
        gpus = list(programs.stand_ins(layout, how))
        for old in (layout.folder / LEDGERS).glob("*"):
            old.unlink()
    else:
        gpus = list(programs.bentoml_servers(layout, options.model))
    components = [*gpus, *programs.proxies(layout, installed, found)]
    if options.control:
        components.append(programs.control_loop(layout, options.interval_s, options.control_command))
    if options.prometheus == "auto" and (one := programs.prometheus(layout)) is not None:
        components.append(one)
    return components


def _first_table(layout: Layout) -> RoutingTable:
    """The control loop goes on from the last good table of its folder, so Envoy begins with it as well."""
    with contextlib.suppress(InputError):
        return RoutingTable.read(layout.folder / CONTROL / TABLE, layout.fleet)
    return plan(layout.fleet, Load.of(layout.fleet, {}), generated_at=datetime.now(UTC))


def _about(layout: Layout, file: Path, options: Options, components: list[Component], installed: Programs) -> About:
    kinds = {one.kind for one in components}
    regions = {}
    for name, place in layout.places.items():
        dispatcher = place.dispatchers[0] if place.dispatchers else None
        regions[name] = RegionAbout(
            edge=f"{layout.scheme}://{place.edge}",
            edge_admin=f"http://{place.admin}",
            dispatcher=f"http://{dispatcher.address}" if dispatcher else "",
            dispatcher_admin=f"http://{dispatcher.admin}" if dispatcher else "",
            gpu_servers={layout.gpu_name(name, i): f"http://{at}" for i, at in enumerate(place.servers, start=1)},
        )
    standin = options.servers == "standin"
    return About(
        fleet_file=str(file.resolve()),
        servers="stand-in" if standin else "bentoml",
        service_time=_service_time(layout.fleet, options).text if standin else "",
        service_time_s=layout.fleet.service_time_s,
        model="" if standin else options.model or "animator:latest",
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        path=layout.fleet.jobs.paths[0],
        regions=regions,
        control=f"http://{layout.control}" if "control" in kinds else "",
        prometheus=f"http://{layout.prometheus}" if "prometheus" in kinds else "",
        versions={**installed.versions, **versions("bentoml")},
    )


def _supervise(folder: Path, lock: int, reservation: Reservation) -> tuple[subprocess.Popen[bytes], int]:
    """Start the supervisor; its process, and the end of its lifeline that keeps it alive."""
    theirs, ours = os.pipe()
    command = [sys.executable, "-m", "laboratory.local.supervisor", str(folder), str(theirs)]
    try:
        with (folder / LOGS / "supervisor.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603  # the command is ours
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {MARK: str(folder)},
                pass_fds=(theirs, lock, reservation.file),
                start_new_session=True,
            )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return process, ours


def _wait(layout: Layout, about: About, options: Options) -> None:
    """Wait until each part runs and sees those behind it."""
    count = sum(len(place.servers) for place in layout.places.values())
    base_s, each_s = _READY_S[options.servers]
    longest_s = options.ready_s or base_s + each_s * count
    end = time.monotonic() + longest_s
    begun_by = time.monotonic() + _BEGUN_S
    with httpx.Client(timeout=10.0, trust_env=False) as client:
        while True:
            state = read_state(layout.folder)
            if state is None and (time.monotonic() > begun_by):
                raise RoutingError(f"the supervisor did not start: {_last_lines(layout.folder, 'supervisor')}")
            if state is not None:
                if of_fleet(state.pid, layout.folder) is None:
                    raise RoutingError(f"the supervisor has ended: {_last_lines(layout.folder, 'supervisor')}")
                _check_starts(layout.folder, state.components)
                if state.phase == "running" and (missing := _missing(client, about)) is None:
                    return
            if time.monotonic() > end:
                why = missing if state is not None and state.phase == "running" else "not all parts listen"
                raise RoutingError(f"not ready after {longest_s:.0f} s: {why}; logs are in {layout.folder / LOGS}")
            time.sleep(0.05)


def _check_starts(folder: Path, components: tuple[Running, ...]) -> None:
    for one in components:
        if one.starts >= _MOST_STARTS:
            raise RoutingError(f"{one.name} ends with {one.exit_status}: {_last_lines(folder, one.name)}")


def _missing(client: httpx.Client, about: About) -> str | None:
    """What is not ready yet, or None."""
    for name, region in about.regions.items():
        if region.dispatcher_admin and not _sees_servers(client, name, region):
            return f"the dispatcher of {name} does not see all its GPU servers"
        if not _sees_all(client, region.edge_admin):
            return f"the edge of {name} does not see all that is behind it"
    for what, url in (("control loop", f"{about.control}/livez"), ("Prometheus", f"{about.prometheus}/-/ready")):
        if url.startswith("http") and not _ok(client, url):
            return f"the {what} does not answer"
    return None


def _sees_servers(client: httpx.Client, name: str, region: RegionAbout) -> bool:
    """Whether a dispatcher finds all its GPU servers ready."""
    seen = dispatcher_now(client, name, region.dispatcher_admin)
    return seen is not None and seen.ready == len(region.gpu_servers)


def _sees_all(client: httpx.Client, admin: str) -> bool:
    """Whether an edge knows dispatchers, and finds all of them healthy."""
    try:
        text = client.get(f"{admin}/stats", params={"filter": r"^cluster\.jobs\.membership_(healthy|total)$"}).text
    except httpx.HTTPError:
        return False
    values = {line.partition(":")[2].strip() for line in text.splitlines()}
    return len(values) == 1 and values != {"0"}


def _ok(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _last_lines(folder: Path, name: str, count: int = 3) -> str:
    """The end of a log, for an error; of Envoy's the line that says why it gave up, and not the stack below it."""
    try:
        lines = (folder / LOGS / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    why = [line.partition("assert failure: ")[2] for line in lines if "assert failure: " in line]
    return " / ".join(line.strip() for line in why[-1:] or lines[-count:] if line.strip()) or "it says nothing"
