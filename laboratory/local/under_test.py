"""A scenario of the simulator on a real fleet of this machine: Envoys, the control loop, stand-ins for GPU servers."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx

from routing.errors import InputError
from routing.fleet import Fleet
from routing.table import RoutingTable

from ..arrivals import Arrival, Outcome
from ..simulate.build import arrivals
from ..simulate.run import first_table
from ..simulate.scenario import LOOP, Experiment, Proxies
from ..tune.goal import Figures
from .client import quantile, send
from .launch import Options, Started, running

MOST_RPS, MOST_S = 300.0, 1800.0
"""One sender in Python keeps up with so many requests per second; longer scenarios belong in the simulator."""


class LocalFleet:
    """A fleet under test (`laboratory.tune.goal.FleetUnderTest`) that runs for as long as the scenario does.

    Attributes:
        busy_s: of the last measurement: how long a job kept a GPU server busy, by the servers' own metrics.
    """

    busy_s: float = math.nan

    def measure(self, experiment: Experiment, fleet: Fleet, seed: int) -> Figures:
        """Run the scenario once, in real time.

        Args:
            experiment: scenario, service times, arrivals.
            fleet: with the policy that is tried.
            seed: of the arrivals.

        Raises:
            InputError: the scenario has what this fleet cannot do; the key says what.
            RoutingError: the fleet does not start.
        """
        wanted = arrivals(experiment, seed)
        check(experiment, wanted)
        scenario = experiment.scenario
        with tempfile.TemporaryDirectory(prefix="stillmotion-test-") as folder:
            options = Options(
                prometheus="no",
                control=scenario.table == LOOP,
                interval_s=scenario.control.interval_s,
                table=RoutingTable(generated_at=datetime.now(UTC), shares=first_table(experiment)),
                service_time=_text(experiment),
                seed=seed,
                alone=False,
            )
            with running(fleet, Path(scenario.fleet), Path(folder), options) as started:
                outcomes = asyncio.run(send(wanted, started.edges, path=fleet.jobs.paths[0]))
                self.busy_s = asyncio.run(busy_seconds(started))
        return figures([one for one in outcomes if one.at_s >= scenario.warm_up_s])


def check(experiment: Experiment, wanted: Sequence[Arrival]) -> None:
    """See that a fleet of this machine can run the scenario.

    Raises:
        InputError: with the key.
    """
    scenario = experiment.scenario
    if scenario.failures:
        raise InputError("cannot be made to happen by this; leave them out, or run a load test", key="failures")
    if scenario.control.down:
        raise InputError("cannot be made to happen by this; leave it out", key="control.down")
    times = {"detection_s", "connect_timeout_s"}  # a real fleet has its own
    if scenario.proxies.model_dump(exclude=times) != Proxies().model_dump(exclude=times):
        raise InputError("a real fleet has one dispatcher a region, with the queue of its fleet file", key="proxies")
    if scenario.duration_s > MOST_S:
        raise InputError(f"{scenario.duration_s:g} s in real time are more than {MOST_S:g}", key="duration_s")
    if len(wanted) > MOST_RPS * scenario.duration_s:
        rps = len(wanted) / scenario.duration_s
        raise InputError(
            f"{rps:.0f} requests per second are more than {MOST_RPS:g}, which this can send", key="arrivals"
        )
    if scenario.service_time.kind == "measured":
        raise InputError(
            "measured times are for the simulator; give lognormal, fixed or exponential", key="service_time"
        )


def figures(outcomes: Sequence[Outcome]) -> Figures:
    """What users and servers saw."""
    good = [one for one in outcomes if one.ok]
    waits = sorted(one.wait_s for one in good)
    attempts = sorted(one.attempts for one in outcomes if one.attempts)
    return Figures(
        failure_share=1 - len(good) / len(outcomes) if outcomes else 0.0,
        in_region_share=sum(one.served_by == one.region for one in good) / len(good) if good else 1.0,
        attempts_per_request=fmean(attempts) if attempts else 1.0,
        attempts_p99=float(quantile(attempts, 0.99)) or 1.0,
        mean_wait_s=fmean(waits) if waits else 0.0,
        p95_wait_s=quantile(waits, 0.95),
        p99_wait_s=quantile(waits, 0.99),
    )


def _text(experiment: Experiment) -> str:
    settings, times = experiment.scenario.service_time, experiment.times
    if settings.kind == "lognormal":
        return f"lognormal:{times.mean_s!r},{settings.variation!r}"
    return f"{settings.kind}:{times.mean_s!r}"


async def busy_seconds(fleet: Started) -> float:
    """How long a job kept a stand-in busy, in s, as they count it: a little longer than the job itself."""
    pages = await stand_ins(fleet)
    jobs = sum(page["requests"].get("ok", 0) for page in pages)
    return sum(page["busy_s"] for page in pages) / jobs if jobs else math.nan


async def stand_ins(fleet: Started) -> list[dict[str, Any]]:
    """What each stand-in of a fleet says of itself."""
    urls = [url for region in fleet.about.regions.values() for url in region.gpu_servers.values()]
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        return [page.json() for page in await asyncio.gather(*(client.get(f"{url}/standin") for url in urls))]
