"""One process that sends requests, as a part of a load test."""

from __future__ import annotations

import argparse
import time
from typing import Any

import gevent
import psutil
from gevent.event import Event
from locust.env import Environment
from locust.runners import WorkerRunner

from laboratory.arrivals import Outcome
from routing.console import tell
from routing.errors import RoutingError

from .options import prepare
from .sender import Sender
from .tally import Tally

READY, GO, DONE = "stillmotion_ready", "stillmotion_go", "stillmotion_done"
"""A worker has read its files, or cannot; the master says which part is its own; the worker has all answers."""
REPORT_KEY = "stillmotion"
BEGIN_AFTER_S = 1.0
_CPU_EVERY_S = 5.0


class Worker:
    """Sends its part of the arrivals, once it is told which.

    Args:
        environment: Locust's.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._told = Event()
        self._part = (0, 1)
        self._start = 0.0
        self._sends = False
        self.tally: Tally | None = None

    def reset(self) -> None:
        """Before a run."""
        self._told.clear()
        self._sends, self.tally = False, None

    def go(self, number: int, count: int) -> None:
        """Begin in a moment.

        Args:
            number: of this part of the arrivals, from 0.
            count: of parts.
        """
        self._part, self._start = (number, count), time.monotonic() + BEGIN_AFTER_S
        self._told.set()

    def send(self) -> None:
        """As a user of Locust; only the first of a process sends, the others have nothing to do."""
        if self._sends:
            return
        self._sends = True
        # Read here, and not before it is known that this worker sends: options of the web page come with the start.
        try:
            prepared = prepare(options_of(self._environment))
        except RoutingError as error:
            tell(f"error: {error}")
            self._say(READY, {"problem": str(error)})
            return
        self._say(READY, {"problem": ""})
        self._told.wait()
        self.tally = tally = Tally(prepared.bin_s, prepared.deployment.fleet.service_time_s)
        sender = Sender(
            prepared.deployment.edges,
            prepared.deployment.fleet,
            prepared.form,
            prepared.headers,
            prepared.scenario.generator,
            prepared.timeout_s,
            tally,
            self._fire,
        )
        meter = gevent.spawn(_measure_cpu, tally)
        try:
            # Each `count`-th, so that all workers have the same load at each moment.
            number, count = self._part
            sender.send(prepared.arrivals[number::count], self._start)
        finally:
            meter.kill()
        self._done()

    def _fire(self, outcome: Outcome, size: int) -> None:
        """Locust's own statistics, with the latency that counts from when a request was due."""
        error = None if outcome.ok else RoutingError(outcome.problem or f"status {outcome.status}")
        self._environment.events.request.fire(
            request_type="POST",
            name=outcome.region,
            response_time=outcome.latency_s * 1000,
            response_length=size,
            exception=error,
            context={},
        )

    def report(self, data: dict[str, Any]) -> None:
        """Into a report to the master."""
        if self.tally is not None:
            data[REPORT_KEY] = self.tally.take()

    def _done(self) -> None:
        data: dict[str, Any] = {}
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner):
            self.report(data)
        self._say(DONE, data)

    def _say(self, what: str, data: dict[str, Any]) -> None:
        runner = self._environment.runner
        assert runner is not None
        runner.send_message(what, data)


def options_of(environment: Environment) -> argparse.Namespace:
    """Arguments of Locust, with ours."""
    found = environment.parsed_options
    assert isinstance(found, argparse.Namespace)
    return found


def _measure_cpu(tally: Tally) -> None:
    process = psutil.Process()
    process.cpu_percent()
    while True:
        gevent.sleep(_CPU_EVERY_S)
        tally.cpu_percent = max(tally.cpu_percent, process.cpu_percent())
