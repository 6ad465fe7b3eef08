# ruff: noqa: INP001  # a script, no package
"""The simulator: events a second, a day of a large fleet, and refusals beside Erlang's formula.

    OMP_NUM_THREADS=1 python scripts/measure_simulator.py --out benchmarks/routing/simulator.json

Takes a minute, and with `--day` some minutes more: a whole day of 50,000 GPUs in 20 regions, with the control loop.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from laboratory import service_times as service
from laboratory.machine import machine, versions
from laboratory.queueing import erlang_b
from laboratory.simulate.results import results
from laboratory.simulate.run import Outcome, simulate
from laboratory.simulate.scenario import Experiment, Scenario
from routing.console import tell
from routing.fleet import Fleet

# Cities that have data centres, north and east positive.
PLACES = {
    "virginia": (38.9, -77.0),
    "ohio": (40.0, -83.0),
    "oregon": (45.6, -121.2),
    "california": (37.4, -121.9),
    "texas": (32.8, -96.8),
    "montreal": (45.5, -73.6),
    "sao-paulo": (-23.5, -46.6),
    "ireland": (53.3, -6.3),
    "london": (51.5, -0.1),
    "frankfurt": (50.1, 8.7),
    "paris": (48.9, 2.4),
    "stockholm": (59.3, 18.1),
    "milan": (45.5, 9.2),
    "bahrain": (26.1, 50.6),
    "mumbai": (19.1, 72.9),
    "singapore": (1.3, 103.8),
    "tokyo": (35.7, 139.7),
    "osaka": (34.7, 135.5),
    "seoul": (37.6, 127.0),
    "sydney": (-33.9, 151.2),
}
SERVICE_S = 2.5
LOADS = {1: (0.3, 0.6, 0.9, 1.5), 4: (0.3, 0.6, 0.9, 1.5), 12: (0.5, 0.7, 0.9, 1.2), 60: (0.75, 0.85, 0.95, 1.2)}
LOADS |= {300: (0.88, 0.92, 1.0, 1.2)}
_T_99 = 2.715  # Student's t, two-sided 99 %, 37 degrees of freedom


def fleet_of(places: dict[str, tuple[float, float]], gpus: int) -> Fleet:
    """Regions with so many GPUs each."""
    return Fleet.model_validate(
        {
            "regions": {n: {"gpus": gpus, "latitude": x, "longitude": y} for n, (x, y) in places.items()},
            "service_time_s": SERVICE_S,
            "rings_ms": [40.0, 90.0, 200.0, 400.0],
            "thresholds": [{"load": 0.75, "ring": 1}, {"load": 0.85, "ring": 2}, {"load": 0.95, "ring": 4}],
            "target_load": 0.75,
        }
    )


def run(fleet: Fleet, times: service.ServiceTimes | None = None, seed: int = 0, **scenario: Any) -> Outcome:
    """Run a scenario of these settings."""
    found = Scenario.model_validate({"name": "measured"} | scenario)
    return simulate(Experiment(found, fleet, times or service.lognormal(SERVICE_S, 0.1)), seed)


def speed(name: str, fleet: Fleet, repeats: int, **scenario: Any) -> dict[str, Any]:
    """Events a second of processor time, the median of some runs; the whole run beside it."""
    outcomes = [run(fleet, **scenario) for _ in range(repeats)]
    found = results(outcomes[-1])
    row = {
        "name": name,
        "regions": len(fleet.names),
        "gpus": sum(region.gpus for region in fleet.regions.values()),
        "simulated_s": scenario["duration_s"],
        "requests": found["requests"],
        "events": found["events"],
        "events_per_s": round(statistics.median(one.last.events / one.loop_s for one in outcomes)),
        "loop_s": round(statistics.median(one.loop_s for one in outcomes), 3),
        "whole_s": round(statistics.median(one.whole_s for one in outcomes), 3),
        "failure_share": found["failure_share"],
        "attempts_per_request": found["attempts_per_request"],
        "in_region_share": found["in_region_share"],
    }
    tell(f"{name}: {row['events_per_s'] / 1e6:.1f} million events a second, {row['whole_s']} s in all")
    return row


def against_erlang(gpus: int, load: float, seed: int) -> dict[str, Any]:
    """Share refused without retries in 600,000 jobs, its 99 % interval over 38 parts, and Erlang's B."""
    seconds = 600_000 / (gpus * load)
    fleet = fleet_of({"a": (0.0, 0.0)}, gpus).model_copy(update={"service_time_s": 1.0})
    fleet = Fleet.model_validate(fleet.model_dump() | {"retry": {"attempts": 1}})
    kinds = (service.fixed(1.0), service.exponential(1.0), service.lognormal(1.0, 1.0))
    times = kinds[(gpus + int(20 * load)) % 3]
    outcome = run(fleet, times, seed, duration_s=seconds, series_s=seconds / 40, table="home", arrivals={"load": load})
    parts = outcome.series[2:]
    refused = np.array([float(b.failed.sum() - a.failed.sum()) for a, b in pairwise(parts)])
    arrived = np.array([float(b.arrived.sum() - a.arrived.sum()) for a, b in pairwise(parts)])
    share = refused.sum() / arrived.sum()
    half = _T_99 * np.std(refused - share * arrived, ddof=1) / arrived.mean() / len(parts[1:]) ** 0.5
    expected = erlang_b(gpus, gpus * load)
    return {
        "gpus": gpus,
        "load": load,
        "service_times": times.text,
        "refused": round(float(share), 6),
        "half_interval": round(float(half), 6),
        "erlang_b": round(expected, 6),
        "within": bool(abs(share - expected) <= half),
    }


def main() -> None:
    """Measure, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--day", action="store_true", help="a whole day of the large fleet too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    one, large = fleet_of({"a": (0.0, 0.0)}, 1000), fleet_of(PLACES, 2500)
    day = {"load": 1.0, "day": {"trough": 0.4}}
    speeds = [
        speed("one region at 90 %", one, 5, duration_s=2000.0, table="home", arrivals={"load": 0.9}),
        speed("20 regions at 70 %, fixed table", large, 5, duration_s=120.0, table="plan", arrivals={"load": 0.7}),
        speed("20 regions at 110 %, fixed table", large, 3, duration_s=60.0, table="plan", arrivals={"load": 1.1}),
        speed("20 regions, half an hour of a day, control loop", large, 1, duration_s=1800.0, arrivals=day),
    ]
    if options.day:
        speeds.append(speed("20 regions, a day, control loop", large, 1, duration_s=86_400.0, arrivals=day))
    erlang = [against_erlang(gpus, load, options.seed) for gpus, loads in LOADS.items() for load in loads]
    tell(f"Erlang B: {sum(row['within'] for row in erlang)} of {len(erlang)} within the 99 % interval")
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": machine() | {"threads": os.environ.get("OMP_NUM_THREADS", "")},
        "versions": versions("numba"),
        "seed": options.seed,
        "speed": speeds,
        "erlang_b": erlang,
    }
    text = json.dumps(result, indent=2) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")
        tell(f"written: {options.out}")


if __name__ == "__main__":
    main()
