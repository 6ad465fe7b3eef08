# ruff: noqa: INP001  # a script, no package
"""Rollouts on a local fleet under traffic: a good student and six bad ones, and what users notice of each.

    python scripts/measure_rollout.py --runs 5 --out benchmarks/routing/rollout.json

Takes some thirteen minutes a run. Each rollout has a fleet of its own: where a bad student is promoted in spite of all,
the next one is not compared with it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from laboratory.arrivals import poisson
from laboratory.local.client import Outcome, Summary, send
from laboratory.local.launch import Options, Started, running
from laboratory.machine import machine, versions
from routing.console import tell
from routing.data_plane import ShadowTraffic
from routing.fleet import load_fleet

FLEET = Path("docs/examples/small-fleet.yaml")
SETTINGS = Path("docs/examples/rollout.yaml")
SERVICE_S = 0.15
LOAD = 0.6
COPIED = 0.2  # of the requests; one copy at a time is compared
CASES = {
    "good": {},
    "never ready": {"ready": False},
    "slower": {"slowness": 2},
    "fails one in a hundred": {"failing": 0.01},
    "black": {"clip": "black"},
    "still": {"clip": "still"},
    # Probes may meet none of them; copies of users' requests do.
    "black one in eight": {"clip": "black", "clip_share": 0.12},
}


async def rollout(started: Started, name: str, faults: dict[str, Any], seed: int) -> dict[str, Any]:
    """One rollout with traffic from before its start until after its end."""
    fleet = started.layout.fleet
    rps = {region: LOAD * fleet.capacity_rps(region) for region in fleet.names}
    command = [sys.executable, "-m", "routing", "rollout", "start", "--json", "--dir", str(started.folder)]
    command += ["--model", name, "--faults", json.dumps(faults), "--file", str(SETTINGS)]
    outcomes: list[Outcome] = []
    sent: list[asyncio.Task[list[Outcome]]] = []
    generator, over = random.Random(seed), asyncio.Event()  # noqa: S311  # no secret

    async def traffic() -> None:
        while not over.is_set():
            arrivals = poisson(rps, 1.0, generator)
            sent.append(asyncio.create_task(send(arrivals, started.edges, watch=outcomes.append)))
            await asyncio.sleep(1.0)

    task = asyncio.create_task(traffic())
    await asyncio.sleep(5)
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=sys.stderr)
    output, _ = await process.communicate()
    seconds = time.monotonic() - began
    await asyncio.sleep(5)
    over.set()
    await task
    await asyncio.gather(*sent)
    result, summary = json.loads(output), Summary.of(outcomes)
    jobs = next((one["candidate"]["jobs"] for one in result["judgement"].get("findings", [])), 0)
    clips = next((one["candidate"] for one in result["judgement"].get("findings", []) if one["name"] == "clips"), {})
    found = {"phase": result["phase"], "step": result["step"], "why": result["why"], "seconds": round(seconds, 1)}
    found |= {"jobs_of_candidate": jobs, "copies": clips.get("jobs", 0), "wrong_copies": clips.get("events", 0)}
    found |= {"requests": summary.requests, "failures": summary.failures}
    found |= {"failed_share": summary.failed_share, "statuses": summary.statuses, "late": summary.late}
    return found | {"p95_s": round(summary.p95_s, 3)}


def main() -> None:
    """Measure, and write the figures after each rollout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="of each case (default: 5)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON")
    options = parser.parse_args()
    about = {"machine": machine(), "versions": versions(), "fleet": str(FLEET), "settings": SETTINGS.read_text()}
    about |= {"service_time_s": SERVICE_S, "load": LOAD, "copied_share": COPIED}
    runs: list[dict[str, Any]] = []
    usual = Options(service_time=f"{SERVICE_S}", prometheus="no")
    fleet = load_fleet(FLEET)
    plane = fleet.data_plane.model_copy(update={"shadow": ShadowTraffic(share=COPIED)})
    fleet = fleet.model_copy(update={"data_plane": plane})
    for run, case in product(range(1, options.runs + 1), options.cases):
        with tempfile.TemporaryDirectory() as folder, running(fleet, FLEET, Path(folder), usual) as started:
            found = asyncio.run(rollout(started, case.replace(" ", "-"), CASES[case], seed=run))
        runs.append({"case": case, "run": run, **found})
        text = f"{case} {run}: {found['phase']} after {found['seconds']} s"
        tell(f"{text}, {found['failures']} of {found['requests']} failed")
        options.out.write_text(json.dumps({**about, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
