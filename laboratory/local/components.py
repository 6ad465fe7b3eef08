"""What a fleet is made of, as a file: the programs that are to run, and what is known of those that do.

Both are plain JSON of small records, so that the supervisor needs nothing but Python's own library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["gpu", "dispatcher", "edge", "control", "prometheus"]
Phase = Literal["starting", "running", "stopping"]

WANTED, STATE, LOCK, LOGS = "components.json", "state.json", "lock", "logs"


@dataclass(frozen=True)
class Component:
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
    ports: tuple[int, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    ready_s: float = 60.0
    stop_s: float = 5.0


@dataclass(frozen=True)
class Running:
    """What is known of one program.

    Attributes:
        pid, started: of its process; None: it does not run now.
        starts: how often it was started.
        exit_status: of its last end, minus the signal where one ended it; None: it has not ended.
    """

    name: str
    pid: int | None = None
    started: str | None = None
    starts: int = 0
    exit_status: int | None = None


@dataclass(frozen=True)
class State:
    """What the supervisor says.

    Attributes:
        pid, started: its own.
        phase: starting until each stage listens.
        components: in the order of their start.
    """

    pid: int
    started: str
    phase: Phase
    components: tuple[Running, ...] = ()


def write_wanted(folder: Path, components: Sequence[Component]) -> None:
    """Say what is to run."""
    text = json.dumps({"components": [asdict(one) for one in components]}, indent=2)
    _replace(folder / WANTED, text)


def read_wanted(folder: Path) -> list[Component]:
    """What is to run.

    Raises:
        OSError, ValueError: there is no such file, or it is damaged.
    """
    content = _read(folder / WANTED)
    found = []
    for one in content["components"]:
        one |= {"command": tuple(one["command"]), "ports": tuple(one["ports"])}
        found.append(Component(**one))
    return found


def write_state(folder: Path, state: State) -> None:
    """Say what runs."""
    _replace(folder / STATE, json.dumps(asdict(state), indent=2))


def read_state(folder: Path) -> State | None:
    """What runs, as it was last said; None: nothing was, or the file is damaged."""
    try:
        content = _read(folder / STATE)
        components = tuple(Running(**one) for one in content.pop("components"))
        return State(**content, components=components)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _read(path: Path) -> dict[str, Any]:
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no object")  # noqa: TRY004  # a damaged file is one kind of error
    return content


def _replace(path: Path, text: str) -> None:
    # Not by `files`, which would sync each to the disk: nothing here has to outlive a power cut.
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)
