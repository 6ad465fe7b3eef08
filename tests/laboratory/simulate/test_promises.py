"""What holds for each run."""

import heapq
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laboratory.simulate.results import results
from laboratory.simulate.run import simulate

BROAD = "test_each_job_is_served_or_refused_or_lost_and_no_gpu_has_two"
REGIONS = st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any)


@st.composite
def experiments(draw, make):
    gpus = draw(REGIONS)
    names = "abcd"[: len(gpus)]
    failures = []
    if draw(st.booleans()):
        at = draw(st.integers(1, 30))
        kind = draw(st.sampled_from([{"vanishes": True}, {}, {"slowness": 3.0}, {"gpus": 1}]))
        region = draw(st.sampled_from(names))
        if "gpus" not in kind or gpus[names.index(region)]:
            until = draw(st.sampled_from([None, at + 7.0]))
            failures = [{"region": region, "at_s": float(at), **kind} | ({"until_s": until} if until else {})]
    return make(
        gpus,
        kind=draw(st.sampled_from(["fixed", "exponential", "lognormal"])),
        latency_ms=draw(st.sampled_from([0.0, 80.0])),
        retry={
            "attempts": draw(st.sampled_from([1, 2, 5])),
            "delay": draw(st.sampled_from([{}, {"share": 0.3, "burst_share": 0.5}])),
        },
        duration_s=60.0,
        table=draw(st.sampled_from(["home", "plan", "control"])),
        arrivals={
            "rps": {names[0]: draw(st.floats(0.1, 20.0))},
            "bursts": [{"at_s": 10.0, "region": names[-1], "jobs": draw(st.integers(1, 40))}],
        },
        proxies={
            "dispatchers": draw(st.integers(1, 3)),
            "queue": draw(st.sampled_from([0, 0, 3])),
        },
        failures=failures,
    )


@given(st.data())
@settings(max_examples=25)
def test_each_job_is_served_or_refused_or_lost_and_no_gpu_has_two(make, data):
    experiment = data.draw(experiments(make))
    outcome = simulate(experiment, data.draw(st.integers(0, 3)))
    most = np.array([region.gpus for region in experiment.fleet.regions.values()])
    for one in [*outcome.series, outcome.last]:
        assert (one.busy <= one.gpus).all()
        assert (one.busy >= 0).all()
        assert (one.gpus <= most).all()
        assert one.arrived.sum() == one.failed.sum() + one.lost.sum() + one.ended.sum() + one.busy.sum() + one.under_way
        assert (one.busy_s <= most * one.time_s + 1e-9).all()
    last = outcome.last
    assert last.under_way == 0
    assert last.busy.sum() == 0
    assert last.attempts_taken.sum() == last.arrived.sum()
    began = last.served_flow.sum()
    assert last.waits.sum() <= began if experiment.scenario.proxies.queue else last.waits.sum() == began
    assert last.tried_flow.sum() <= last.tried.sum() == last.retried.sum() + last.arrived.sum()
    assert (last.attempts_taken * np.arange(last.attempts_taken.shape[1])).sum() == last.tried.sum()
    found = results(outcome)
    assert found["requests"] == found["served"] + found["failures"]


@given(st.data())
@settings(max_examples=6)
def test_the_same_seed_gives_the_same_result_and_another_one_another(make, data):
    experiment = data.draw(experiments(make))
    one, same, other = (results(simulate(experiment, seed)) for seed in (1, 1, 2))
    for found in (one, same, other):
        found.pop("events_per_s")
        found.pop("seed")
    assert one == same
    if one["requests"] > 100:
        assert one != other


@pytest.mark.slow
def test_nothing_reads_or_writes_beyond_an_array(tmp_path):
    # The compiled loop checks no bounds: what goes wrong there shows as nonsense, or not at all. Here it does.
    checked = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    these = [f"{__file__}::{name}" for name in (BROAD, "test_events_happen_in_order")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *these]
    done = subprocess.run(command, env=checked, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def refused_of(times, gpus, service_s):
    """Each arrival takes a free server or is lost, the plain way."""
    busy, refused = [], 0
    for time in times:
        while busy and busy[0] <= time:
            heapq.heappop(busy)
        if len(busy) < gpus:
            heapq.heappush(busy, time + service_s)
        else:
            refused += 1
    return refused


# Whole and half seconds: many events fall on one moment, where ends come before arrivals.
@given(
    st.lists(st.integers(0, 120).map(lambda i: i / 2), min_size=1, max_size=200),
    st.integers(1, 5),
    st.sampled_from([0.5, 1.0, 2.0]),
)
@settings(max_examples=60)
def test_events_happen_in_order(make, times, gpus, service_s):
    trace = [(time, "a") for time in times]
    retry = {"attempts": 1}
    outcome = simulate(make([gpus], service_s=service_s, retry=retry, duration_s=60.0, trace=trace))
    assert outcome.last.failed.sum() == refused_of(sorted(times), gpus, service_s)


def test_a_herd_of_one_moment_costs_no_more_than_its_sorting(make):
    # All computations begin and end at one moment, again and again: in a plain calendar they would be one bucket.
    trace = [(float(t), "a") for t in range(0, 10, 2) for _ in range(40_000)]
    outcome = simulate(make([50_000], trace=trace, duration_s=10.0, retry={"attempts": 1}))
    assert outcome.last.failed.sum() == 0
    assert outcome.last.events / outcome.loop_s > 100_000


@pytest.mark.parametrize("table", ["home", "control"])
def test_more_gpus_refuse_less_and_more_load_is_refused_more(make, table):
    def failed(gpus, rps, attempts=3):
        experiment = make(
            [gpus, 10],
            latency_ms=20.0,
            retry={"attempts": attempts},
            duration_s=500.0,
            table=table,
            arrivals={"rps": {"a": rps, "b": 5.0}},
        )
        return simulate(experiment).last.failed.sum()

    by_gpus = [failed(gpus, 12.0) for gpus in (4, 8, 12, 16, 24)]
    assert by_gpus == sorted(by_gpus, reverse=True)
    by_load = [failed(10, rps) for rps in (5.0, 10.0, 15.0, 20.0)]
    assert by_load == sorted(by_load)
    by_attempts = [failed(10, 12.0, attempts) for attempts in (1, 2, 4, 8)]
    assert by_attempts == sorted(by_attempts, reverse=True)


def test_policies_meet_the_same_arrivals_and_service_times(make):
    one = make([8], kind="exponential", retry={"attempts": 1}, duration_s=200.0, arrivals={"load": 0.3})
    other = replace(
        one, fleet=one.fleet.model_copy(update={"retry": one.fleet.retry.model_copy(update={"attempts": 5})})
    )
    first, second = simulate(one), simulate(other)
    assert (first.last.arrived == second.last.arrived).all()
    assert [s.arrived.tolist() for s in first.series] == [s.arrived.tolist() for s in second.series]


def test_a_result_is_what_it_was_on_other_machines(make):
    # Draws are of integers and +, -, *, / alone. Obtained by this very run.
    shares = {"a": {"a": 0.8, "b": 0.2}, "b": {"a": 0.1, "b": 0.9}}
    settings = {"shares": shares, "table": "home", "duration_s": 300.0, "arrivals": {"load": 0.9}}
    last = simulate(make([5, 3], kind="lognormal", latency_ms=30.0, **settings), 7).last
    found = {"arrived": last.arrived.tolist(), "tried": last.tried_flow.tolist(), "failed": last.failed.tolist()}
    assert found == GOLDEN


GOLDEN = {"arrived": [1370, 831], "tried": [[2997, 749], [303, 2723]], "failed": [26, 72]}
