"""Rollouts on fleets of this machine: one at a time; its state is in the fleet's folder, its moves in the journal."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from routing.control.journal import NAME as JOURNAL
from routing.control.journal import Journal
from routing.errors import InputError, RoutingError
from routing.fleet import Fleet, load_fleet
from routing.jobs import Jobs
from routing.rollout.counters import Pages
from routing.rollout.probe import ask
from routing.rollout.runner import Rollout, Watch
from routing.rollout.settings import SLOW_JOBS, Probe, RolloutSettings
from routing.rollout.shadow import Shadow
from routing.rollout.state import Order, State

from .gpu import NAME as STAND_IN
from .gpu import Faults
from .layout import CONTROL, FLEET
from .processes import runs
from .records import About, read_wanted
from .versions import LocalServers, model_of

FOLDER = "rollout"


def start(folder: Path, model: str, file: Path | None, faults: str = "{}") -> dict[str, Any]:
    """Run a rollout to its end.

    Args:
        folder: of the fleet.
        model: the candidate.
        file: of settings; None: the usual ones.
        faults: JSON, of stand-ins with the candidate.

    Raises:
        InputError: there is no such fleet, the settings cannot be used, or an earlier rollout is not over.
        RoutingError: servers do not become ready with the model that they are to go on with.
    """
    about, fleet = _running(folder)
    settings = RolloutSettings.read(file) if file is not None else RolloutSettings()
    stand_ins = about.servers == STAND_IN
    if faults != "{}":
        if not stand_ins:
            raise InputError("--faults: are of stand-ins")
        Faults().changed(faults)
    if fleet.data_plane.limits.dispatcher_threads != 1:
        raise InputError("is not 1; versions are counted by one thread", key="data_plane.limits.dispatcher_threads")
    candidate = f"{STAND_IN}:{model}" if stand_ins else model
    with _alone(folder) as place:
        before = State.read(place)
        if before is not None and not before.over:
            text = f"an earlier rollout, of {before.candidate}, is not over; end it with `rollout promote` or `abort`"
            raise InputError(text)
        stable = _stable(folder, about)
        if candidate == stable:
            raise InputError(f"--model: the servers have {model} already")
        Order.take(place)
        # Another service takes another form.
        probe = settings.probe if fleet.jobs.paths[0] == Jobs().paths[0] else None
        base = file.parent if file is not None else Path()
        with _shadow(fleet, probe) as shadow:
            rollout = Rollout(
                settings=settings,
                stable=stable,
                candidate=candidate,
                servers=LocalServers(folder, fleet, stable, candidate, faults, settings.ready_s),
                source=Pages.of(fleet),
                ask=(lambda url: ask(url, probe, base)) if probe else None,
                slow_s=settings.limits.slow_s or SLOW_JOBS * fleet.service_time_s,
                journal=_journal(folder),
                folder=place,
                clips=shadow.clips if shadow else None,
            )
            return {"action": "start", **rollout.run().model_dump(mode="json")}


def status(folder: Path) -> dict[str, Any]:
    """Return how the rollout is.

    Raises:
        InputError: there was none.
    """
    state = State.read(folder / FOLDER)
    if state is None:
        raise InputError(f"there was no rollout in {folder}")
    return {"action": "status", "running": _held(folder / FOLDER), **state.model_dump(mode="json")}


def end(folder: Path, what: Literal["promote", "abort"]) -> dict[str, Any]:
    """Tell a rollout to end; one whose process has gone is ended here.

    Raises:
        InputError: none is under way.
    """
    place = folder / FOLDER
    state = State.read(place)
    if state is None or state.over:
        raise InputError(f"no rollout is under way in {folder}")
    if _held(place):
        Order(what=what).give(place)
        return {"action": what, "told": what}
    _, fleet = _running(folder)
    with _alone(folder):
        servers = LocalServers(folder, fleet, state.stable, state.candidate)
        if what == "promote":
            servers.promote()
        else:
            servers.set_candidates({}, Watch())
        phase = "promoted" if what == "promote" else "aborted"
        over = state.model_copy(update={"phase": phase, "why": f"an operator's order to {what}"})
        over.write(place)
        _journal(folder).note("rollout", f"{phase}: {over.why}", candidate=state.candidate)
    return {"action": what, **over.model_dump(mode="json")}


@contextmanager
def _shadow(fleet: Fleet, probe: Probe | None) -> Iterator[Shadow | None]:
    """Take copies of users' requests where the fleet's edges send them, and its service makes clips."""
    settings = fleet.data_plane.shadow
    if settings is None or probe is None:
        yield None
        return
    pages = [f"http://{one.admin}" for place in fleet.places().values() for one in place.dispatchers]
    with Shadow(pages, fleet.jobs, probe.limit_s).listening(settings.receiver) as shadow:
        yield shadow


def _running(folder: Path) -> tuple[About, Fleet]:
    about = About.read(folder)
    if about is None or not runs(folder):
        raise InputError(f"no fleet runs in {folder}; start one with `fleet up`")
    return about, load_fleet(folder / FLEET)


def _stable(folder: Path, about: About) -> str:
    """Return the model that all servers have."""
    models = {model_of(one, about.model) for one in read_wanted(folder) if one.kind == "gpu"}
    if len(models) != 1:
        raise InputError(f"the servers have {len(models)} models ({', '.join(sorted(models))}); make them one first")
    return models.pop()


def _journal(folder: Path) -> Journal:
    return Journal(folder / CONTROL / JOURNAL, lambda: datetime.now(UTC))


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """Hold the place of the fleet's rollout.

    Raises:
        RoutingError: another process has it.
    """
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    file = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RoutingError(f"a rollout is under way in {folder}") from None
        yield place
    finally:
        os.close(file)


def _held(place: Path) -> bool:
    try:
        with _alone(place.parent):
            return False
    except RoutingError:
        return True
