"""What a fleet of three regions of four stand-ins, with jobs of half a second, is held to. Real proxies, real time.

Limits are those of the project. Arrivals are the same in each run; what remains of chance is in Envoy's draws, and the
figures behind each limit say how far away it is. `pytest -rP` shows what was measured.
"""

import asyncio
import heapq
import random
import statistics
import time
from datetime import UTC, datetime

import pytest

from laboratory.arrivals import burst, merged, poisson
from laboratory.local.launch import Options
from laboratory.local.layout import PROXIES
from routing.console import tell
from routing.envoy.files import write_table
from routing.table import RoutingTable

from .conftest import REGIONS

QUIET = Options(prometheus="no", ledgers=True, control=False, alone=False)


@pytest.mark.slow
def test_at_seventy_percent_nothing_fails_and_users_are_served_at_home(local_fleet, summarised):
    async def scenario(fleet):
        outcomes = await fleet.poisson(0.7, 30.0)
        found, ideal_s = summarised(outcomes), home_lines_p95_s(outcomes)
        show("70 %", found, f", {ideal_s:.2f} s in one line at home")
        assert found.requests > 400
        async with fleet.judged(found):
            assert found.failures == 0
            assert found.home_share >= 0.97
            assert found.p95_s <= 1.3 * ideal_s + 0.03
        fleet.check_conserved()

    with local_fleet(alone=False) as fleet:
        asyncio.run(scenario(fleet))


def test_a_burst_of_twice_the_gpus_and_ten_tables_under_load_lose_nothing(local_fleet, summarised):
    async def scenario(fleet):
        await fleet.poisson(0.2, 1.0)
        for _ in range(2):
            found = summarised(await fleet.send(burst(dict.fromkeys(REGIONS, 8))))
            show("24 at once", found)
            async with fleet.judged(found):
                assert (found.requests, found.failures) == (24, 0)
        async with fleet.under(0.6) as outcomes:
            changed = await ten_tables(fleet)
        assert changed == 10
        found = summarised(outcomes)
        show("ten tables at 60 %", found)
        assert found.requests > 50
        async with fleet.judged(found):
            assert found.failures == 0
        # The tables were in use: the third region got what they gave it.
        assert found.served["a"]["c"] > found.served["a"]["a"] / 10
        fleet.check_conserved()

    with local_fleet(QUIET) as fleet:
        asyncio.run(scenario(fleet))


def one_line_s(outcomes, gpus):
    """Times of the same jobs in one line for so many GPUs, first come first served, without bound."""
    free_at, times = [0.0] * gpus, []
    for at_s in sorted(one.at_s for one in outcomes):
        ends_s = max(at_s, free_at[0]) + 0.5
        heapq.heapreplace(free_at, ends_s)
        times.append(ends_s - at_s)
    return times


def home_lines_p95_s(outcomes):
    """p95 of all users where each region is one line of its own GPUs, which is the least that staying home allows."""
    return p95(time for name in REGIONS for time in one_line_s([one for one in outcomes if one.region == name], 4))


def p95(times):
    return statistics.quantiles(times, n=20, method="inclusive")[-1]


def show(name, found, more=""):
    home = f"{found.home_share:.1%} at home, {found.attempts:.2f} attempts at edges"
    waits = f"p50 {found.p50_s:.2f} s, p95 {found.p95_s:.2f} s, p99 {found.p99_s:.2f} s, {found.late} sent late"
    tell(f"{name}: {found.failures} of {found.requests} failed ({found.failed_share:.2%}), {home}, {waits}{more}")


async def ten_tables(fleet):
    changed = 0
    for version in range(2, 12):
        away = 0.1 if version % 2 else 0.3
        shares = {source: {to: 1 - 2 * away if to == source else away for to in REGIONS} for source in REGIONS}
        table = RoutingTable(version=version, generated_at=datetime.now(UTC), shares=shares)
        changed += len(write_table(fleet.folder / PROXIES, fleet.fleet, table)) == len(REGIONS)
        await asyncio.sleep(0.3)
    return changed


@pytest.mark.slow
@pytest.mark.parametrize(("load", "failures", "home_share"), [(0.9, 0.001, 0.97), (0.95, 0.01, 0.96)])
def test_near_the_capacity_users_stay_at_home_few_fail_and_waits_are_short(
    local_fleet, summarised, load, failures, home_share
):
    """What a full line refuses finds room elsewhere, so that waits are far below those of lines at home alone."""

    async def scenario(fleet):
        await fleet.poisson(load, 5.0, seed=2)
        before = await fleet.gpu_requests()
        outcomes = await fleet.poisson(load, 60.0)
        attempts = await fleet.gpu_requests() - before
        found, home_s, all_s = summarised(outcomes), home_lines_p95_s(outcomes), p95(one_line_s(outcomes, 12))
        lines = f"{home_s:.2f} s in one line at home, {all_s:.2f} s in one line of all GPUs"
        show(f"{load:.0%}", found, f", {attempts / found.requests:.3f} attempts at GPUs, {lines}")
        assert found.requests > 1000
        async with fleet.judged(found):
            assert found.failed_share <= failures
            assert attempts / found.requests <= 1.02
            assert found.home_share >= home_share
            assert found.p95_s <= min(1.3 * home_s, 1.7 * all_s) + 0.03  # two proxies, the way to another region
        fleet.check_conserved()

    with local_fleet(alone=False) as fleet:
        asyncio.run(scenario(fleet))


@pytest.mark.slow
def test_a_region_at_150_percent_spills_to_its_near_neighbour_first_and_loses_next_to_nothing(local_fleet, summarised):
    """a is overloaded, b is in its ring 1, c in its ring 2."""

    async def scenario(fleet):
        loads = {"a": 1.5, "b": 0.4, "c": 0.4}
        arrivals = poisson(fleet.rps(loads), 80.0, random.Random(3))
        tables = {}

        async def watch():
            began = time.monotonic()
            while time.monotonic() < began + 80:
                tables[fleet.table().version] = (time.monotonic() - began, fleet.table())
                await asyncio.sleep(0.5)

        outcomes, _ = await asyncio.gather(fleet.send(arrivals), watch())
        found = summarised(one for one in outcomes if one.at_s >= 30)
        show("150 %, 40 %, 40 %", found, f", a's users: {found.served['a']}")
        assert found.requests > 800
        async with fleet.judged(found):
            assert found.failed_share <= 0.005
        # b has room for 2.8 of a's 12 rps, and c gets what is then still too much.
        assert found.served["a"]["b"] > found.served["a"].get("c", 0)
        settled = [table for at_s, table in tables.values() if at_s >= 20]
        first = [next(move.ring for move in table.moves if move.source == "a") for table in settled]
        # Now and then chance fills b with requests of its own.
        assert first.count(1) >= 0.8 * len(first)
        fleet.check_conserved()

    with local_fleet(alone=False) as fleet:
        asyncio.run(scenario(fleet))


@pytest.mark.slow
def test_a_burst_upon_traffic_loses_nothing_under_the_control_loop(local_fleet, summarised):
    async def scenario(fleet):
        base = poisson(fleet.rps(0.5), 20.0, random.Random(4))
        outcomes = await fleet.send(merged(base, burst(dict.fromkeys(REGIONS, 8), 8.0)))
        found = summarised(outcomes)
        async with fleet.judged(found):
            assert found.failures == 0
        fleet.check_conserved()

    with local_fleet(alone=False) as fleet:
        asyncio.run(scenario(fleet))
