"""Arrivals, the client that sends them, and what is said of many."""

import asyncio
import random
import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laboratory.arrivals import Arrival, Outcome, burst, merged, poisson
from laboratory.local.client import Summary, quantile, send
from laboratory.queueing import wilson


def test_poisson_arrivals_have_their_rate_and_exponential_gaps():
    found = poisson({"a": 50.0, "b": 5.0}, 200.0, random.Random(1))
    of_a = [one.at_s for one in found if one.region == "a"]
    assert len(of_a) == pytest.approx(10_000, rel=0.05)
    assert sum(one.region == "b" for one in found) == pytest.approx(1_000, rel=0.1)
    gaps = [b - a for a, b in pairwise(of_a)]
    assert statistics.fmean(gaps) == pytest.approx(0.02, rel=0.05)
    assert statistics.pstdev(gaps) == pytest.approx(0.02, rel=0.05)
    assert found == sorted(found)


def test_arrivals_of_a_seed_are_the_same_again_and_no_rate_has_none():
    assert poisson({"a": 5.0}, 10.0, random.Random(3)) == poisson({"a": 5.0}, 10.0, random.Random(3))
    assert poisson({"a": 0.0}, 10.0, random.Random(3)) == []


def test_a_burst_comes_at_once_and_fits_among_others():
    assert merged(burst({"a": 2, "b": 1}, 3.0), [Arrival(1.0, "a"), Arrival(5.0, "b")]) == [
        Arrival(1.0, "a"),
        Arrival(3.0, "a"),
        Arrival(3.0, "a"),
        Arrival(3.0, "b"),
        Arrival(5.0, "b"),
    ]


class Edge:
    """Answers after a while, or once it has so many requests, with a status that it was given, or not at all."""

    def __init__(self, seconds=0.05, status=200, until=0):
        self.seconds, self.status, self.until, self.begun = seconds, status, until, 0
        self.enough = asyncio.Event()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_):
        self.server.close()

    async def _serve(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        body = await reader.readexactly(length)
        assert b'name="prompt"' in body
        self.begun += 1
        if self.begun >= self.until:
            self.enough.set()
        await self.enough.wait()
        await asyncio.sleep(self.seconds)
        if self.status:
            about = "x-stillmotion-region: b\r\nx-stillmotion-gpu: b-1\r\nx-stillmotion-attempts: 2\r\nx-request-id: i"
            writer.write(f"HTTP/1.1 {self.status} X\r\n{about}\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()


def test_an_answer_is_told_with_who_gave_it():
    async def scenario():
        async with Edge() as url:
            (found,) = await send([Arrival(0.1, "a")], {"a": url})
        assert found.ok
        assert (found.region, found.served_by, found.gpu, found.attempts, found.request_id) == ("a", "b", "b-1", 2, "i")
        assert found.latency_s >= 0.05
        assert found.late_s >= 0

    asyncio.run(scenario())


def test_requests_leave_at_their_times_whatever_became_of_those_before():
    async def scenario():
        edge = Edge(until=10)  # answers none before it has all
        async with edge as url:
            found = await send([Arrival(0.02 * i, "a") for i in range(10)], {"a": url})
        assert all(one.ok for one in found)
        assert [one.at_s for one in found] == sorted(one.at_s for one in found)

    asyncio.run(scenario())


def test_what_is_refused_lost_or_too_slow_is_no_success_and_has_no_server():
    async def scenario():
        async with Edge(status=429) as busy, Edge(status=0) as dead, Edge(until=2) as slow:
            edges = {"busy": busy, "dead": dead, "none": "http://127.0.0.1:9"}
            found = await send([Arrival(0.0, name) for name in edges], edges)
            found += await send([Arrival(0.0, "slow")], {"slow": slow}, timeout_s=0.3)
        by_region = {one.region: one for one in found}
        assert not any(one.ok for one in found)
        assert (by_region["busy"].status, by_region["busy"].served_by) == (429, "")
        assert [by_region[name].status for name in ("dead", "slow", "none")] == [0, 0, 0]
        assert by_region["slow"].problem
        assert by_region["none"].problem

    asyncio.run(scenario())


def test_a_summary_counts_failures_home_and_latencies():
    good = [
        Outcome("a", 0.0, 0.0, 0.1 * i, 200, "a" if i % 4 else "b", 1, gpu="a-1", request_id=str(i))
        for i in range(1, 101)
    ]
    bad = [Outcome("a", 0.0, 0.2, 9.0, 429, attempts=5), Outcome("a", 0.0, 0.0, 9.0, 0)]
    found = Summary.of([*good, *bad])
    assert (found.requests, found.failures, found.late) == (102, 2, 1)
    assert found.statuses == {0: 1, 200: 100, 429: 1}
    assert found.home_share == 0.75
    assert found.served == {"a": {"a": 75, "b": 25}}
    assert found.attempts == pytest.approx((100 + 5) / 101)
    assert (found.p50_s, found.p99_s) == (pytest.approx(5.0), pytest.approx(9.9))
    assert found.failed_low < 2 / 102 < found.failed_high
    empty = Summary.of([])
    assert (empty.requests, empty.failed_share, empty.failed_high) == (0, 0.0, 1.0)


@given(of=st.integers(1, 500), data=st.data())
def test_an_interval_holds_its_share_and_lies_between_none_and_all(of, data):
    count = data.draw(st.integers(0, of))
    low, high = wilson(count, of)
    assert 0 <= low <= count / of <= high <= 1


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0, 1))
def test_a_quantile_is_one_of_the_values_and_so_many_are_not_above_it(values, share):
    values.sort()
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
