"""One load test in Locust: which part of it a process is, and what passes between them.

The master draws nothing: each worker draws all arrivals from the seed and sends its part of them. What became of them
travels back with Locust's own reports, and is added up.
"""

from __future__ import annotations

from locust import User, constant, task
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from .master import Master, refuse_tags
from .worker import DONE, GO, READY, Worker


class Arrivals(User):
    """What Locust starts: one in each worker sends that worker's requests, whatever their number."""

    wait_time = constant(3600)  # after its one task
    host = "the edge of each region"  # for Locust's page, which asks for one
    worker: Worker | None = None

    @task
    def send(self) -> None:
        """Send, until all have been answered."""
        assert self.worker is not None
        self.worker.send()


def set_up(environment: Environment) -> Master | None:
    """Make a process of Locust part of a load test; the master of it, where this is one."""
    runner = environment.runner
    refuse_tags(environment)
    worker = Worker(environment)
    Arrivals.worker = worker
    if isinstance(runner, WorkerRunner):
        runner.register_message(GO, lambda msg, **_: worker.go(msg.data["number"], msg.data["count"]))
        environment.events.test_start.add_listener(lambda **_: worker.reset())
        environment.events.report_to_master.add_listener(lambda data, **_: worker.report(data))
        return None
    assert isinstance(runner, LocalRunner | MasterRunner)
    master = Master(environment, worker)
    runner.register_message(READY, lambda msg, **_: master.ready(msg.node_id, msg.data["problem"]))
    runner.register_message(DONE, lambda msg, **_: master.done(msg.data))
    environment.events.test_start.add_listener(lambda **_: master.begin())
    environment.events.spawning_complete.add_listener(lambda **_: master.spawned())
    environment.events.worker_report.add_listener(lambda data, **_: master.add(data))
    # Who stops a run, or ends Locust, before it is over has no verdict of it.
    environment.events.test_stop.add_listener(lambda **_: master.conclude())
    environment.events.quitting.add_listener(lambda **_: master.conclude())
    master.check()
    return master
