"""An experiment as the arrays that the compiled loop works on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from routing.errors import InputError

from ..arrivals import Arrival
from . import state as st
from .compiled import key_of
from .demand import check_size, given_times, rates_of
from .events import NEVER, next_arrival
from .loop import MOST_HOSTS, MOST_SOURCES
from .scenario import Experiment

_RATE_ARRIVALS, _RATE_JOBS, _GIVEN_JOBS = 1, 2, 3  # streams of draws
_BUCKETS_A_GPU = 2
_CALENDAR_TIMES = 4.0
"""The calendar covers so many service times: few events are farther away, and these wait for another round."""
_FEWEST_PLACES = 1024


def build(experiment: Experiment, seed: int) -> st.State:
    """The state before the first event; no region has a row of the table yet.

    Raises:
        InputError: the fleet is too large for the simulator.
    """
    fleet = experiment.fleet
    n = len(fleet.names)
    hosts, regions = _hosts_and_regions(experiment)
    if n > MOST_SOURCES or len(hosts) > MOST_HOSTS:
        raise InputError(f"more than {MOST_SOURCES} regions cannot be simulated", key="regions")
    check_size(experiment)
    streams, times, rate = _streams(experiment, seed)
    gpus = sum(region.gpus for region in fleet.regions.values())
    places = max(_FEWEST_PLACES, 2 * gpus)
    nodes, jobs = np.zeros(places, st.node_type), np.zeros(_FEWEST_PLACES, st.job_type)
    st.chain(nodes["next"], 0, -1)
    st.chain(jobs["next"], 0, -1)
    one_way = np.array([[fleet.latency(one, other) / 2000 for other in fleet.names] for one in fleet.names])
    times_of_service = experiment.times
    return st.State(
        scalars=_scalars(experiment),
        hosts=hosts,
        regions=regions,
        streams=streams,
        order=np.arange(len(streams), dtype=np.int64),
        jobs=jobs,
        nodes=nodes,
        heads=np.full(_buckets(gpus), -1, np.int32),
        near=np.zeros(places, st.event_type),
        rows=np.zeros((st.GROUPS, n, n), st.place_type),
        row_lengths=np.zeros((st.GROUPS, n), np.int64),
        one_way_s=one_way,
        tried_flow=np.zeros((n, n), np.int64),
        served_flow=np.zeros((n, n), np.int64),
        attempts_taken=np.zeros((n, fleet.retry.attempts + 1), np.int64),
        waits=np.zeros((n, st.BINS), np.int64),
        latencies=np.zeros((n, st.BINS), np.int64),
        times=times,
        rates=rate,
        atoms=np.zeros(1) if times_of_service.atoms is None else times_of_service.atoms,
    )


def _buckets(gpus: int) -> int:
    return 1 << max(8, min(22, (_BUCKETS_A_GPU * gpus - 1).bit_length()))


def _scalars(experiment: Experiment) -> st.Records:
    proxies, retry = experiment.scenario.proxies, experiment.fleet.retry
    gpus = sum(region.gpus for region in experiment.fleet.regions.values())
    queue, mean_s = experiment.fleet.queue, experiment.times.mean_s
    scalars = np.zeros(1, st.scalars_type)
    for name, value in {
        "buckets_per_s": _buckets(gpus) / (_CALENDAR_TIMES * experiment.times.mean_s),
        "bucket": 0,
        "attempts": retry.attempts,
        "base_s": retry.base_interval_s,
        "most_s": retry.max_interval_s,
        "delay_s": retry.delay.max_s,
        "connect_s": proxies.connect_timeout_s,
        "queue": -1 if proxies.queue is None else proxies.queue,
        "longest_s": max(queue.bounds_s(mean_s)) if proxies.queue is None else 0.0,
        "places_per_gpu": queue.bounds_s(mean_s)[0] / mean_s,
        "spill_places_per_gpu": queue.spill_bounds_s(mean_s)[0] / mean_s,
        "exponential": experiment.times.atoms is None,
        "service_s": experiment.times.mean_s,
    }.items():
        scalars[name] = value
    return scalars


def _hosts_and_regions(experiment: Experiment) -> tuple[st.Records, st.Records]:
    fleet, proxies = experiment.fleet, experiment.scenario.proxies
    gpus_of: list[int] = []
    home: list[int] = []
    regions = np.zeros(len(fleet.names), st.region_type)
    for i, region in enumerate(fleet.regions.values()):
        # Disjoint sets of GPU servers, as even as can be; a region without GPUs has a host that refuses.
        parts = max(1, min(proxies.dispatchers, region.gpus))
        regions[i]["first_host"], regions[i]["hosts"] = len(gpus_of), parts
        gpus_of += [region.gpus // parts + (k < region.gpus % parts) for k in range(parts)]
        home += [i] * parts
    hosts = np.zeros(len(gpus_of), st.host_type)
    hosts["region"], hosts["gpus"], hosts["free"] = home, gpus_of, gpus_of
    regions["gpus"] = [region.gpus for region in fleet.regions.values()]
    regions["slowness"] = 1.0
    regions["delay_share"] = fleet.retry.delay.share
    return hosts, regions


def _streams(experiment: Experiment, seed: int) -> tuple[st.Records, NDArray[np.float64], NDArray[np.float64]]:
    """Streams of arrivals, with the times and rates that they read."""
    fleet = experiment.fleet
    scenario = experiment.scenario
    given = given_times(scenario.arrivals, experiment.trace, scenario.duration_s)
    streams: list[tuple[int, int, int, int, np.uint64, np.uint64]] = []
    times: list[NDArray[np.float64]] = []
    rate: list[NDArray[np.float64]] = []
    at = 0
    for i, (name, of_region) in enumerate(rates_of(experiment).items()):
        if of_region.rates.any():
            keys = key_of(seed, _RATE_ARRIVALS, i), key_of(seed, _RATE_JOBS, i)
            streams.append((i, 0, at, at + len(of_region.rates), *keys))
            times.append(of_region.times)
            rate.append(np.append(of_region.rates, 0.0))
            at += len(of_region.times)
        if name in given:
            streams.append((i, 1, at, at + len(given[name]), np.uint64(0), key_of(seed, _GIVEN_JOBS, i)))
            times.append(given[name])
            rate.append(np.zeros(len(given[name])))
            at += len(given[name])
    if not streams:
        raise InputError(f"nothing arrives: give load, rps, bursts or a trace for one of {', '.join(fleet.names)}")
    found = np.zeros(len(streams), st.stream_type)
    for i, (source, trace, position, end, arrival_key, job_key) in enumerate(streams):
        found[i]["source"], found[i]["trace"], found[i]["position"], found[i]["end"] = source, trace, position, end
        found[i]["arrival_key"], found[i]["job_key"] = arrival_key, job_key
    return found, np.concatenate(times), np.concatenate(rate)


def arrivals(experiment: Experiment, seed: int) -> list[Arrival]:
    """Draw the arrivals of a run alone, in order of time: what a simulated fleet and a real one can both be given."""
    state, names = build(experiment, seed), experiment.fleet.names
    found = []
    while (source := next_arrival(state, NEVER)) >= 0:
        found.append(Arrival(float(state.scalars["now"][0]), names[source]))
    return found
