"""What goes wrong with a running fleet, and what its users notice of it: as little as can be, and never twice."""

import asyncio
import contextlib
import os
import re
import sys
import time
from pathlib import Path

import pytest

from laboratory.local.launch import Options
from laboratory.local.layout import CONTROL, PROXIES
from laboratory.local.report import dispatcher_now
from routing.console import tell
from routing.dispatcher.files import dispatcher_folder
from routing.envoy.files import BOOTSTRAP, ENDPOINTS, edge_folder

HERE = Path(__file__).parent
LOST = 502  # a job whose server died: it may have been computed, so it is not tried again


def healthy(fleet, region, count):
    """Whether the dispatcher of a region sees so many GPU servers."""
    seen = dispatcher_now(fleet.pages, region, fleet.started.about.regions[region].dispatcher_admin)
    return seen is not None and seen.ready == count


def longest_in_line_s(fleet, region):
    """What the dispatcher of a region says of its line, since it started."""
    text = fleet.pages.get(fleet.started.about.regions[region].dispatcher_admin + "/metrics?scope=backend").text
    return float(re.search(r'^haproxy_backend_max_queue_time_seconds{proxy="gpus"} (\S+)$', text, re.MULTILINE)[1])


@contextlib.contextmanager
def dead(fleet, region):
    """A region is killed, and its proxies do not come back before the block is over."""
    root = fleet.folder / PROXIES
    files = [edge_folder(root, region) / BOOTSTRAP, dispatcher_folder(root, region) / "haproxy.cfg"]
    for file in files:
        file.rename(file.with_suffix(".away"))
    try:
        fleet.kill(*reversed(fleet.parts(region)))
        yield
    finally:
        for file in files:
            file.with_suffix(".away").rename(file)


def test_a_killed_gpu_server_costs_its_own_job_at_most_and_is_started_again(shared_fleet):
    async def scenario(fleet):
        starts = fleet.starts("gpu-a-1")
        async with fleet.under(0.5) as outcomes:
            await fleet.until(lambda: len(outcomes) > 10, what="traffic")
            for name in ("gpu-a-1", "gpu-b-2"):
                fleet.kill(name)
            await fleet.until(lambda: fleet.starts("gpu-a-1") > starts and fleet.pid("gpu-a-1"), what="a new process")
            await fleet.until(lambda: healthy(fleet, "a", 4) and healthy(fleet, "b", 4), what="four servers again")
        failed = [one for one in outcomes if not one.ok]
        assert len(failed) <= 2
        assert {one.status for one in failed} <= {LOST}
        fleet.check_conserved(lost=2)
        # The new ones compute as the old ones did.
        after = await fleet.poisson(0.5, 2.0, seed=2)
        assert all(one.ok for one in after)

    asyncio.run(scenario(shared_fleet))


def test_a_killed_region_costs_what_it_had_in_flight_and_comes_back_by_itself(shared_fleet):
    """Its edge too: its users come to a's, as a resolver would send them."""

    async def scenario(fleet):
        began = time.monotonic()
        async with fleet.under({"a": 0.35, "c": 0.35}) as others, contextlib.AsyncExitStack() as loss:
            async with fleet.under({"b": 0.35}) as of_b:
                await fleet.until(lambda: len(of_b) > 5, what="traffic of b")
                loss.enter_context(dead(fleet, "b"))
                killed_s = time.monotonic() - began
            moved = await fleet.poisson({"a": 0.35}, 4.0, seed=3)
        # Whoever came after the kill was served; of those before, what b had begun or had at its edge is lost.
        assert [one for one in moved if not one.ok] == []
        failed = [one for one in others if not one.ok]
        assert all(one.at_s <= killed_s + 0.5 for one in failed)
        assert len(failed) + sum(not one.ok for one in of_b) <= 12
        await fleet.until(lambda: healthy(fleet, "b", 4), what="b's servers again")
        await fleet.until(lambda: fleet.status()["regions"]["b"]["gpus_ready"] == 4, what="b's capacity again")
        after = await fleet.poisson(0.4, 2.0, seed=2)
        assert all(one.ok for one in after)
        fleet.check_conserved(lost=12)

    asyncio.run(scenario(shared_fleet))


def test_a_killed_control_loop_and_damaged_tables_cost_nothing(shared_fleet):
    async def scenario(fleet):
        table = fleet.folder / CONTROL / "table.json"
        endpoints = edge_folder(fleet.folder / PROXIES, "a") / ENDPOINTS
        starts = fleet.starts("control")
        async with fleet.under(0.5) as outcomes:
            endpoints.write_text("resources: [{nonsense")
            table.write_text('{"version": 3, "shares"')
            fleet.kill("control")
            await fleet.until(lambda: fleet.status() and fleet.starts("control") > starts, what="a new control loop")
            await fleet.until(lambda: "nonsense" not in endpoints.read_text(), what="the edge's table mended")
            assert fleet.table().shares["a"]["a"] > 0.9
            assert (fleet.folder / CONTROL / "table.json.unusable-1").exists()
        assert [one for one in outcomes if not one.ok] == []
        fleet.check_conserved()

    asyncio.run(scenario(shared_fleet))


@pytest.mark.slow
def test_a_table_that_another_hand_has_spoilt_is_mended_while_the_loop_runs(local_fleet):
    async def scenario(fleet):
        endpoints = edge_folder(fleet.folder / PROXIES, "b") / ENDPOINTS
        async with fleet.under(0.5, 25.0) as outcomes:
            sound = endpoints.read_text()
            endpoints.write_text("version_info: x\nresources: 5\n")
            (fleet.folder / CONTROL / "table.json").write_text("")
            await fleet.until(lambda: endpoints.read_text() == sound, what="the edge's table mended")
            assert fleet.table().shares["b"]["b"] > 0.9
        assert [one for one in outcomes if not one.ok] == []
        fleet.check_conserved()

    with local_fleet() as fleet:
        asyncio.run(scenario(fleet))


@pytest.mark.slow
def test_a_region_that_flaps_loses_nothing_and_is_trusted_slowly(local_fleet):
    async def scenario(fleet):
        async with fleet.under(0.45, 30.0) as outcomes:
            for _ in range(6):
                await fleet.faults(fleet.servers("b"), ready=False)
                await asyncio.sleep(2)
                await fleet.faults(fleet.servers("b"), ready=True)
                await asyncio.sleep(2)
        assert [one for one in outcomes if not one.ok] == []
        await fleet.until(lambda: fleet.table().shares["b"]["b"] > 0.9, 60.0, "b's users at home again")
        fleet.check_conserved()

    with local_fleet() as fleet:
        asyncio.run(scenario(fleet))


@pytest.mark.slow
def test_when_all_regions_are_hot_each_serves_its_own_and_all_recover(local_fleet, summarised):
    async def scenario(fleet):
        outcomes = await fleet.poisson(1.15, 25.0)
        found = summarised(outcomes)
        # At 115 % no system can serve more than 1 / 1.15 = 87 % for long.
        assert 1 - found.failed_share >= 0.75
        assert found.home_share >= 0.8
        shares = fleet.table().shares
        assert all(shares[name][name] > 0.8 for name in shares)
        # Jobs that are older, since other lines refused them, come first; nobody waits for longer all the same.
        bound_s = fleet.fleet.queue.bounds_s(0.5)[0]
        longest = [longest_in_line_s(fleet, name) for name in "abc"]
        tell(f"115 %: {longest} s at most in line, {found}")
        assert all(0 < one <= bound_s + 0.1 for one in longest)
        await asyncio.sleep(5)
        after = summarised(await fleet.poisson(0.5, 8.0, seed=2))
        assert after.failures == 0
        fleet.check_conserved()

    with local_fleet() as fleet:
        asyncio.run(scenario(fleet))


@pytest.mark.slow
def test_a_clock_that_jumps_moves_nothing(local_fleet, tmp_path, monkeypatch):
    """The time of day of the control loop goes a day forth, and two back."""
    off = tmp_path / "off"
    off.write_text("0")
    monkeypatch.setenv("STILLMOTION_JUMPS", str(off))
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[2]))
    command = (sys.executable, str(HERE / "jumping_control.py"))
    options = Options(prometheus="no", ledgers=True, interval_s=1.0, control_command=command)

    async def scenario(fleet):
        async with fleet.under({"a": 1.2, "b": 0.4, "c": 0.4}, 50.0) as outcomes:
            await asyncio.sleep(20)
            before = fleet.table()
            for seconds in (86_400, -86_400, 0):
                off.write_text(str(seconds))
                rounds = fleet.status()["rounds"]
                await asyncio.sleep(6)
                status = fleet.status()
                assert status["rounds"] >= rounds + 3
                assert status["failure"] == status["frozen"] == ""
                for source, row in status["shares"].items():
                    assert row[source] == pytest.approx(before.shares[source][source], abs=0.25)
        assert sum(not one.ok for one in outcomes if one.at_s > 18) <= 3
        fleet.check_conserved()

    with local_fleet(options) as fleet:
        asyncio.run(scenario(fleet))


@pytest.mark.slow
def test_a_killed_edge_and_a_killed_dispatcher_are_started_again(local_fleet):
    async def scenario(fleet):
        for name in ("dispatcher-a", "edge-b"):
            fleet.kill(name)
            await fleet.until(lambda n=name: fleet.starts(n) == 2 and fleet.pid(n), what=f"a new {name}")
        await fleet.until(lambda: healthy(fleet, "a", 4), what="a's servers seen")
        await asyncio.sleep(2)
        assert all(one.ok for one in await fleet.poisson(0.4, 4.0))
        assert os.getpgid(fleet.pid("edge-b")) == fleet.pid("edge-b")
        fleet.check_conserved()

    with local_fleet() as fleet:
        asyncio.run(scenario(fleet))
