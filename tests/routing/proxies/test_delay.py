"""A share of the jobs waits before its first attempt, and both are changed while an edge runs."""

import asyncio
from pathlib import PurePath

from hypothesis import given
from hypothesis import strategies as st

from routing.envoy.edge import STEPS, delay_values, edge_bootstrap
from routing.envoy.files import write_delay


def seconds(responses) -> list[float]:
    assert {response.status_code for response in responses} == {200}
    return sorted(response.elapsed.total_seconds() for response in responses)


def test_the_delay_changes_while_it_runs(running):
    async def scenario():
        async with running({"a": 32}, service_s=0.01) as fleet:

            async def delayed(share, max_s):
                before = await fleet.counter("a", r"runtime\.load_success")
                if write_delay(fleet.root, "a", share, max_s):
                    await fleet.taken("a", r"runtime\.load_success", before)
                return seconds(await fleet.jobs(32, fleet.url("a")))

            injected = r"http\.edge\.fault\.delays_injected"
            usual = max(await delayed(0.0, 1.0))
            assert await fleet.counter("a", injected) == 0

            tries = 0
            while True:
                tries += 1
                took = await delayed(1.0, 1.0)  # uniform(0, 1 s), in eight steps
                assert await fleet.counter("a", injected) == 32 * tries
                assert sum(one > 0.4 for one in took) > 8
                if took[-1] < 1.25 + 2 * usual and sum(one < 0.6 + 2 * usual for one in took) > 8:
                    break
                assert tries < 5  # a machine that stood still in the midst of it is no fault of the edge

            await delayed(0.3, 1.0)
            assert 0 < await fleet.counter("a", injected) - 32 * tries < 24

    asyncio.run(scenario())


def test_a_job_is_delayed_once_and_its_retries_are_not(running):
    async def scenario():
        def change(content):
            content["retry"] |= {"attempts": 5, "base_interval_s": 0.01, "max_interval_s": 0.01}
            content["retry"]["delay"] = {"share": 1.0, "max_s": 0.4, "burst_share": 1.0}

        async with running({"a": 1}, change=change) as fleet:
            fleet.servers["a"][0].busy = 1
            (response,) = await fleet.jobs(1, fleet.url("a"))
            assert response.headers["x-stillmotion-attempts"] == "5"
            assert await fleet.counter("a", r"http\.edge\.fault\.delays_injected") == 1
            for path in ("/docs.json", "/livez", "/readyz"):
                response = await fleet.client.get(fleet.url("a", path))
                assert response.status_code == 200
            assert await fleet.counter("a", r"http\.edge\.fault\.delays_injected") == 1

    asyncio.run(scenario())


@given(share=st.floats(0, 1), max_s=st.floats(0, 1e6))
def test_delays_are_uniform_up_to_the_longest(share, max_s):
    values = delay_values(share, max_s)
    steps = [value for name, value in values.items() if name.endswith("_ms")]
    assert len(steps) == STEPS
    assert steps == sorted(steps)
    assert all(0 <= step <= max_s * 1000 for step in steps)
    assert abs(sum(steps) / len(steps) - max_s * 1000 / 2) <= 0.5
    (drawn,) = (value["numerator"] for name, value in values.items() if name.endswith("share"))
    assert abs(drawn / 1e6 - share) < 1e-6


def test_every_request_id_has_one_delay(example_fleet):
    name = example_fleet.names[0]
    bootstrap = edge_bootstrap(example_fleet, name, example_fleet.places()[name], PurePath("/etc/edge"))
    chain = bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]
    filters = chain["filters"][0]["typed_config"]["http_filters"]
    delays = [one["typed_config"]["headers"] for one in filters if one["name"].startswith("stillmotion.delay")]
    digits = "".join(one[1]["string_match"]["safe_regex"]["regex"].removeprefix(".*[")[:-1] for one in delays)
    assert sorted(digits) == sorted("0123456789abcdef")
