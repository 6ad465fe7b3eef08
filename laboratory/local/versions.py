"""Versions of the model on a fleet of this machine: GPU servers that are given another one.

A server leaves its dispatcher's line, ends its job, is started with the other model, and comes back when it says that
it is ready, so that no job meets one that is not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import httpx

from routing.dispatcher.files import dispatcher_folder
from routing.dispatcher.runtime import set_servers
from routing.errors import InputError
from routing.fleet import Fleet
from routing.rollout.runner import NotReadyError, Watch

from .gpu import NAME
from .layout import PROXIES
from .records import Component, read_state, read_wanted, write_wanted

_AT_ONCE = 0.1
"""Share of a region's servers that are started anew at the same time; one at least."""
_EVERY_S = 0.1
_STAND_IN = "laboratory.local.standin"


@dataclass
class LocalServers:
    """The GPU servers of a fleet on this machine, as `routing.rollout.runner.Servers` has them.

    Attributes:
        folder: of the fleet.
        fleet: as its file there says.
        stable, candidate: names of the models.
        faults: JSON of the faults that stand-ins with the candidate have.
        ready_s: time for a server to become ready.
    """

    folder: Path
    fleet: Fleet
    stable: str
    candidate: str
    faults: str = "{}"
    ready_s: float = 1200.0

    def gpus(self) -> Mapping[str, int]:
        """Return how many servers there are, by region."""
        return {region: len(those) for region, those in self._by_region().items()}

    def set_candidates(self, wanted: Mapping[str, int], watch: Watch) -> None:
        """Give so many servers of each region the candidate; see `Servers`."""
        surplus: list[Component] = []
        for region, those in self._by_region().items():
            surplus += [one for one in those if self._is_candidate(one)][wanted.get(region, 0) :]
        if surplus:  # at once: whatever made them too many should have no more jobs
            self._switch(surplus, self.stable, watch)
        while batch := self._next(wanted):
            self._switch(batch, self.candidate, watch)

    def promote(self) -> None:
        """Make the candidate the stable model; see `Servers`."""
        for joins in (True, False):  # those that run it already, then the others
            for those in self._by_region().values():
                of_them = [one for one in those if self._is_candidate(one) == joins]
                size = _at_once(len(those))
                for at in range(0, len(of_them), size):
                    batch = of_them[at : at + size]
                    if joins:
                        self._tell(without=batch)
                        self._tell(joined=[*self._joined, *batch])
                    else:
                        self._switch(batch, self.candidate, Watch(), joined=True)

    def __post_init__(self) -> None:
        self._joined: list[Component] = []
        for one in self._servers():
            if len(one.ports) > 1:
                raise InputError("stand-ins of this fleet share a process; a rollout wants one for each (32 at most)")

    def _next(self, wanted: Mapping[str, int]) -> list[Component]:
        """Return the servers that are to get the candidate next, a few of each region."""
        found: list[Component] = []
        for region, those in self._by_region().items():
            stable = [one for one in those if not self._is_candidate(one)]
            missing = wanted.get(region, 0) - (len(those) - len(stable))
            found += reversed(stable[len(stable) - min(max(0, missing), _at_once(len(those))) :])
        return found

    def _switch(self, batch: Sequence[Component], model: str, watch: Watch, *, joined: bool = False) -> None:
        """Start servers with another model, out of their dispatchers' sight until they are ready."""
        self._tell(without=batch, watch=watch)
        to_candidate = model == self.candidate
        for one in batch if to_candidate else ():
            watch.leaves(self._url(one))
        names = {one.name for one in batch}
        state = read_state(self.folder)
        starts = {one.name: one.starts for one in state.components} if state else {}
        new = [with_model(one, model, self.faults if to_candidate else "{}") for one in batch]
        changed = {one.name: one for one in new}
        write_wanted(self.folder, tuple(changed.get(one.name, one) for one in read_wanted(self.folder)))
        end = time.monotonic() + self.ready_s
        while waiting := [one for one in new if not self._ready(one, starts.get(one.name, 0))]:
            if time.monotonic() > end:
                text = ", ".join(one.name for one in waiting)
                raise NotReadyError(f"not ready with {model} after {self.ready_s:g} s: {text}")
            watch.look()
            time.sleep(_EVERY_S)
        for one in new if to_candidate else ():
            watch.arrives(self._url(one))
        self._joined = [one for one in self._joined if one.name not in names] + (new if joined else [])
        self._tell()

    def _ready(self, component: Component, starts: int) -> bool:
        """Whether a server was started anew, and says that it is ready."""
        state = read_state(self.folder)
        now = next((one for one in state.components if one.name == component.name), None) if state else None
        if now is None or now.starts <= starts or now.pid is None:
            return False
        try:
            url = f"http://{_address(component)}{self.fleet.jobs.ready}"
            return httpx.get(url, timeout=2.0, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _tell(
        self,
        *,
        without: Sequence[Component] = (),
        joined: Sequence[Component] | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Tell each dispatcher its servers, and wait until those that leave have ended their jobs."""
        self._joined = list(self._joined if joined is None else joined)
        away, members = {one.name for one in without}, {one.name for one in self._joined}
        end = time.monotonic() + self.fleet.jobs.deadline_s
        for region, those in self._by_region().items():
            there = [one for one in those if one.name not in away]
            new = [one for one in there if self._is_candidate(one) and one.name not in members]
            stable, candidates = [_address(one) for one in there if one not in new], [_address(one) for one in new]
            at = dispatcher_folder(self.folder / PROXIES, region)
            while set_servers(at, stable, candidates=candidates, drain_s=1.0):
                if time.monotonic() > end:
                    break  # it is ended all the same
                if watch is not None:
                    watch.look()

    def _url(self, component: Component) -> str:
        return f"http://{_address(component)}{self.fleet.jobs.paths[0]}"

    def _is_candidate(self, component: Component) -> bool:
        return model_of(component, self.stable) == self.candidate

    def _by_region(self) -> dict[str, list[Component]]:
        found: dict[str, list[Component]] = {}
        for one in self._servers():
            found.setdefault(one.region, []).append(one)
        return found

    def _servers(self) -> list[Component]:
        return [one for one in read_wanted(self.folder) if one.kind == "gpu"]


def with_model(component: Component, model: str, faults: str = "{}") -> Component:
    """Return a GPU server's program with another model; stand-ins have faults with it."""
    if _STAND_IN not in component.command:
        return component.model_copy(update={"environment": {**component.environment, "STILLMOTION_MODEL": model}})
    command = list(component.command)
    for option in ("--model", "--faults"):
        if option in command:
            at = command.index(option)
            del command[at : at + 2]
    return component.model_copy(update={"command": (*command, "--model", model, "--faults", faults)})


def model_of(component: Component, unknown: str) -> str:
    """Return the name of a GPU server's model; `unknown` where its program does not say."""
    if _STAND_IN not in component.command:
        return component.environment.get("STILLMOTION_MODEL", unknown)
    command = component.command
    return command[command.index("--model") + 1] if "--model" in command else NAME


def _at_once(count: int) -> int:
    return max(1, ceil(_AT_ONCE * count))


def _address(component: Component) -> str:
    return f"127.0.0.1:{component.ports[0]}"
