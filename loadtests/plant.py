"""Faults that are planted in a fleet on this machine, to see that a load test finds them. Each changes what runs.

What is broken stays so until the fleet goes down; the next one is good again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from laboratory.local.layout import FLEET, PROXIES
from laboratory.local.processes import of_fleet
from laboratory.local.records import About, read_state, read_wanted
from routing.envoy.files import BOOTSTRAP, ENDPOINTS, edge_folder, write_retries
from routing.errors import InputError, RoutingError
from routing.files import read_text, write_atomically, yaml_text
from routing.fleet import Fleet, RetryPolicy, load_fleet
from routing.schema import did_you_mean

from .deployment import ask
from .roles import resolve

_LIMIT_S = 120.0
_SOON_S = 0.001


def plant(name: str, folder: Path, region: str | None = None) -> str:
    """Break a fleet that runs.

    Args:
        name: which fault; see `FAULTS`.
        folder: of the fleet.
        region: where, of those that are in one region; None: the most central.

    Returns:
        What is broken now, for people.

    Raises:
        InputError: no such fault, fleet or region.
        RoutingError: it cannot be planted.
    """
    known(name)
    folder = folder.resolve()
    about = About.read(folder)
    if about is None or read_state(folder) is None:
        raise InputError(f"{folder}: no fleet runs there")
    fleet = load_fleet(folder / FLEET)
    if region is not None and region not in fleet.regions:
        raise InputError(f"{region} is none of the fleet's regions")
    return FAULTS[name](folder, about, fleet, region or resolve({"it": "central"}, fleet)["it"][0])


def known(name: str) -> None:
    """See that there is such a fault.

    Raises:
        InputError: there is none.
    """
    if name not in FAULTS:
        raise InputError(f"{name} is no fault{did_you_mean(name, FAULTS)}")


def no_backoff(folder: Path, _about: About, fleet: Fleet, _region: str) -> str:
    """Edges try again at once, as often as before."""
    policy = RetryPolicy(attempts=fleet.retry.attempts, base_interval_s=_SOON_S, max_interval_s=_SOON_S)
    for name in fleet.names:
        write_retries(folder / PROXIES, fleet, name, policy)
    return "edges retry without backoff"


def threshold_off_by_one(folder: Path, about: About, fleet: Fleet, _region: str) -> str:
    """Each threshold unlocks a ring more than it should."""
    farthest = len(fleet.rings_ms)
    thresholds = tuple(one.model_copy(update={"ring": min(one.ring + 1, farthest)}) for one in fleet.thresholds)
    if thresholds == fleet.thresholds:
        raise InputError("thresholds: all of them unlock the farthest ring already")
    wrong = fleet.model_copy(update={"thresholds": thresholds})
    content = wrong.model_dump(mode="json", by_alias=True, exclude_none=True)
    write_atomically(folder / FLEET, yaml_text(content))
    _restart(folder, "control", lambda: ask(f"{about.control}/livez")[0] == 200)
    return "each threshold unlocks one ring more"


def edge_ignores_table(folder: Path, about: About, _fleet: Fleet, region: str) -> str:
    """The edge of one region goes on with the row that it has now, whatever is published."""
    at = edge_folder(folder / PROXIES, region)
    text = read_text(at / ENDPOINTS)
    _read_another(at, ENDPOINTS, lambda path: write_atomically(path, text))
    _restart(folder, f"edge-{region}", lambda: _sees_hosts(about.regions[region].edge_admin))
    return f"the edge of {region} ignores the table"


def dead_control_loop(folder: Path, _about: About, _fleet: Fleet, _region: str) -> str:
    """The control loop stands still for good. It is stopped, and not killed: the supervisor would start another."""
    _process(folder, "control").suspend()
    return "the control loop stands still"


FAULTS: Mapping[str, Callable[[Path, About, Fleet, str], str]] = {
    "no-backoff": no_backoff,
    "threshold-off-by-one": threshold_off_by_one,
    "edge-ignores-table": edge_ignores_table,
    "dead-control-loop": dead_control_loop,
}


def _read_another(folder: Path, name: str, write: Callable[[Path], object]) -> None:
    """Let a proxy read a copy of one of its files, once it starts again."""
    planted = folder / f"planted-{name}"
    write(planted)
    bootstrap = read_text(folder / BOOTSTRAP)
    if str(folder / name) not in bootstrap:
        raise RoutingError(f"{folder / BOOTSTRAP} does not read {name}")
    write_atomically(folder / BOOTSTRAP, bootstrap.replace(str(folder / name), str(planted)))


def _process(folder: Path, name: str) -> psutil.Process:
    state = read_state(folder)
    pid = next((one.pid for one in state.components if one.name == name), None) if state else None
    if (found := of_fleet(pid, folder)) is None:
        raise RoutingError(
            f"{folder}: {name} does not run; it has {', '.join(one.name for one in read_wanted(folder))}"
        )
    return found


def _restart(folder: Path, name: str, ready: Callable[[], bool]) -> None:
    """Kill a part, and wait until the supervisor has started it again and it is ready."""
    before = _process(folder, name)
    with contextlib.suppress(psutil.NoSuchProcess):
        before.kill()
    end = time.monotonic() + _LIMIT_S
    while time.monotonic() < end:
        time.sleep(0.1)
        with contextlib.suppress(RoutingError):
            if _process(folder, name) != before and ready():
                return
    raise RoutingError(f"{name} has not come back within {_LIMIT_S:g} s")


def _sees_hosts(admin: str) -> bool:
    status, text = ask(f"{admin}/stats?filter=^cluster.jobs.membership_(healthy|total)$")
    values = {line.partition(":")[2].strip() for line in text.splitlines()}
    return status == 200 and len(values) == 1 and values != {"0"}
