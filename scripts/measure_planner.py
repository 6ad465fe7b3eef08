# ruff: noqa: INP001  # a script, no package
"""The planner on random fleets: latency cost against the optimum, and time.

    OMP_NUM_THREADS=1 python scripts/measure_planner.py --out benchmarks/routing/planner.json

The comparison takes about two minutes for 10,000 fleets.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from laboratory.machine import machine, versions
from laboratory.planning import Costs, compare, random_case
from routing.console import tell
from routing.planner import plan


def against_the_optimum(costs: list[Costs]) -> dict[str, dict[str, float]]:
    """Ratios of latency costs: 1 is the optimum."""
    ratios = {
        "iterative": [one.planned / one.optimum for one in costs],
        "iterative, reach by load at home": [one.planned / one.by_home_load for one in costs],
        "plain nearest first": [one.nearest_first / one.nearest_first_optimum for one in costs],
    }
    return {
        name: {
            "median": round(float(np.median(ratio)), 6),
            "p99": round(float(np.quantile(ratio, 0.99)), 6),
            "p999": round(float(np.quantile(ratio, 0.999)), 6),
            "most": round(max(ratio), 6),
            "optimal_share": round(float(np.mean(np.array(ratio) < 1 + 1e-6)), 4),
        }
        for name, ratio in ratios.items()
    }


def time_ms(generator: np.random.Generator, regions: int, fleets: int) -> dict[str, float]:
    """Processor time of whole plans, load checked: the median of five of each fleet."""
    medians = []
    for _ in range(fleets):
        fleet, load = random_case(generator, regions)
        taken = []
        for _ in range(5):
            began = time.process_time()
            plan(fleet, load, generated_at=datetime.now(UTC))
            taken.append(1e3 * (time.process_time() - began))
        medians.append(statistics.median(taken))
    return {
        "regions": regions,
        "fleets": fleets,
        "median_ms": round(statistics.median(medians), 2),
        "p90_ms": round(float(np.quantile(medians, 0.9)), 2),
        "most_ms": round(max(medians), 2),
    }


def main() -> None:
    """Compare, time, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fleets", type=int, default=10_000, help="of the comparison (default: 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    timing = [time_ms(np.random.default_rng(options.seed), regions, 100) for regions in (5, 20, 100)]
    for row in timing:
        tell(f"{row['regions']} regions: {row['median_ms']} ms")
    costs = list(compare(np.random.default_rng(options.seed), options.fleets))
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": machine() | {"threads": os.environ.get("OMP_NUM_THREADS", "")},
        "versions": versions(),
        "fleets": len(costs),
        "seed": options.seed,
        "latency_cost_over_optimum": against_the_optimum(costs),
        "time": timing,
    }
    text = json.dumps(result, indent=2) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")
        tell(f"written: {options.out}")


if __name__ == "__main__":
    main()
