"""A fleet's own files in its folder: what it is (`about.json`), what is to run, and what runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from routing.errors import InputError
from routing.files import read_json, write_atomically
from routing.jobs import Jobs
from routing.schema import Number, Strict, validated

Kind = Literal["gpu", "dispatcher", "edge", "control", "prometheus"]
Phase = Literal["starting", "running", "stopping"]

ABOUT, WANTED, STATE, LOCK, LOGS = "about.json", "components.json", "state.json", "lock", "logs"


class RegionAbout(Strict):
    """One region.

    Attributes:
        edge: where to send requests.
        edge_admin, dispatcher, dispatcher_admin: of its proxies; empty for a region without GPUs.
        gpu_servers: URL by name.
    """

    edge: str
    edge_admin: str
    dispatcher: str = ""
    dispatcher_admin: str = ""
    gpu_servers: Mapping[str, str]


class About(Strict):
    """A fleet on this machine.

    Attributes:
        fleet_file: that it was started from.
        servers: what its GPU servers are.
        service_time: of stand-ins.
        model: of real servers.
        started_at: with the time zone.
        path: that takes jobs.
        regions: by name.
        control, prometheus: URLs; empty where there is none.
        versions: of what it runs.
    """

    fleet_file: str
    servers: Literal["stand-in", "bentoml"]
    service_time: str = ""
    model: str = ""
    started_at: str
    path: str = Jobs().paths[0]
    regions: Mapping[str, RegionAbout]
    control: str = ""
    prometheus: str = ""
    service_time_s: Number = 0.0
    versions: Mapping[str, str] = {}

    def write(self, folder: Path) -> None:
        """Write it into the fleet's folder."""
        write_atomically(folder / ABOUT, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return what the fleet of a folder is; None where no file says so.

        Raises:
            InputError: the file is damaged.
        """
        path = folder / ABOUT
        if not path.exists():
            return None
        try:
            return validated(cls, read_json(path))
        except InputError as error:
            text = f"is damaged ({error}); `fleet down --dir {folder}` ends what runs there"
            raise InputError(text, file=str(path)) from None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return self.model_dump(mode="json")


class Component(Strict):
    """One program that is to run.

    Attributes:
        name: such as `us-east-edge`; its log has the same.
        kind: what it is.
        region: where; empty: of the whole fleet.
        stage: programs of a stage start when those of the stages before listen; they end in the opposite order.
        command: program and arguments.
        ports: on which it listens, on loopback.
        environment: added to the supervisor's own.
        folder: where it runs; empty: where the supervisor does.
        ready_s: so long its stage waits for it.
        stop_s: so long it may take to end.
    """

    name: str
    kind: Kind
    region: str
    stage: int
    command: tuple[str, ...]
    ports: tuple[int, ...] = ()
    environment: Mapping[str, str] = {}
    folder: str = ""
    ready_s: float = 60.0
    stop_s: float = 5.0


class Running(Strict):
    """What is known of one program.

    Attributes:
        pid: of its process; None: it does not run now.
        starts: how often it was started.
        exit_status: of its last end, minus the signal where one ended it; None: it has not ended.
    """

    name: str
    pid: int | None = None
    starts: int = 0
    exit_status: int | None = None


class State(Strict):
    """What the supervisor says.

    Attributes:
        pid: its own.
        phase: starting until each stage listens.
        components: in the order of their start.
    """

    pid: int
    phase: Phase
    components: tuple[Running, ...] = ()


class _Wanted(Strict):
    components: tuple[Component, ...]


def write_wanted(folder: Path, components: tuple[Component, ...]) -> None:
    """Say what is to run."""
    _replace(folder / WANTED, _Wanted(components=components))


def read_wanted(folder: Path) -> tuple[Component, ...]:
    """Return what is to run.

    Raises:
        OSError, ValueError: there is no such file, or it is damaged.
    """
    return _Wanted.model_validate_json((folder / WANTED).read_text(encoding="utf-8")).components


def write_state(folder: Path, state: State) -> None:
    """Say what runs."""
    _replace(folder / STATE, state)


def read_state(folder: Path) -> State | None:
    """Return what runs, as it was last said; None where nothing was, or the file is damaged."""
    try:
        return State.model_validate_json((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _replace(path: Path, content: Strict) -> None:
    # Not by `files`, which would sync each to the disk: nothing here has to outlive a power cut.
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content.model_dump_json(indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
