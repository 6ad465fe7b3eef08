"""One load test in Locust: what the master does, what each worker does, and what passes between them.

The master draws nothing: each worker draws all arrivals from the seed and sends its part of them. What became of them
travels back with Locust's own reports, and is added up.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import gevent
import psutil
from gevent.event import Event
from locust import User, constant, task
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from routing.console import tell
from routing.errors import InputError, RoutingError
from routing.files import write_atomically

from .arrivals import part, write_trace
from .generator import complaints
from .objectives import Run
from .options import Prepared, prepare
from .result import document
from .sender import Sender
from .tally import Outcome, Tally
from .verdict import WRONG_USE, Verdict, judge, lines
from .verdict import Outcome as Result
from .watch import Watch

GO, DONE = "stillmotion_go", "stillmotion_done"
REPORT_KEY = "stillmotion"
_BEGIN_AFTER_S = 1.0
_LOOK_EVERY_S = 1.0
_CPU_EVERY_S = 5.0
_LAST_REPORTS_S = 10.0


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
        self._part, self._start = (number, count), time.monotonic() + _BEGIN_AFTER_S
        self._told.set()

    def send(self) -> None:
        """As a user of Locust; only the first of a process sends, the others have nothing to do."""
        self._told.wait()
        if self._sends:
            return
        self._sends = True
        # Read here, and not before it is known that this worker sends: options of the web page come with the start.
        prepared = prepare(self._environment.parsed_options)
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
            sender.send(part(prepared.arrivals, *self._part), self._start)
        finally:
            meter.kill()
        self._done()

    def _fire(self, outcome: Outcome, size: int) -> None:
        """Locust's own statistics, with the latency that counts from when a request was due."""
        error = None if outcome.ok else RoutingError(outcome.problem or f"status {outcome.status}")
        self._environment.events.request.fire(
            request_type="POST",
            name=outcome.source,
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
        assert runner is not None
        runner.send_message(DONE, data)


class Master:
    """Prepares a run, watches it, and judges it.

    Args:
        environment: Locust's.
        worker: of this process, where master and worker are one.
    """

    def __init__(self, environment: Environment, worker: Worker) -> None:
        self._environment, self._worker = environment, worker
        self._prepared: Prepared | None = None
        self._watch = Watch("")
        self._tally = Tally(1.0, 1.0)
        self._reasons: list[str] = []
        self._waiting = 0
        self._workers = 0
        self._greenlets: list[gevent.Greenlet] = []
        self._judged = False
        self._start = 0.0
        self._broken: list[Any] = []
        self.result: dict[str, Any] | None = None
        self.page = ""

    @property
    def _headless(self) -> bool:
        return bool(self._environment.parsed_options.headless)

    def check(self) -> None:
        """Before anything starts, where there is nobody to choose something else: end with 2 on wrong use."""
        options = self._environment.parsed_options
        # One user a worker is what sends; as many as there are of them, at once.
        workers = max(1, options.processes or 0, options.expect_workers if options.master else 0)
        if options.num_users is None:
            options.num_users = workers
        if options.spawn_rate is None:
            options.spawn_rate = min(100, workers)
        if not self._headless:
            return
        try:
            prepare(options)
        except InputError as error:
            tell(f"error: {error}")
            raise SystemExit(WRONG_USE) from None

    def begin(self) -> None:
        """A run starts: see what it is, and whether it can be."""
        self._end_greenlets()
        self._judged, self.result, self._prepared = False, None, None
        self._reasons, self._broken, self._waiting = [], [], 0
        self._worker.reset()
        options = self._environment.parsed_options
        try:
            self._prepared = prepared = prepare(options)
        except InputError as error:
            tell(f"error: {error}")
            self._environment.process_exit_code = WRONG_USE
            gevent.spawn_later(0.1, self._stop)
            return
        self._watch = Watch(prepared.deployment.control)
        self._tally = Tally(prepared.bin_s, prepared.deployment.fleet.service_time_s)
        if options.arrivals:
            write_trace(prepared.arrivals, Path(options.arrivals))
        from .deployment import unfit

        self._reasons = list(unfit(prepared.deployment, prepared.headers))
        what = f"{prepared.scenario.name}: {len(prepared.arrivals)} requests in {prepared.seconds:.0f} s"
        tell(f"{what}, roles {_roles(prepared)}" if prepared.scenario.roles else what)

    def spawned(self) -> None:
        """All users are there: tell those who send which part is theirs."""
        if self._prepared is None or self._start_is_known:
            return
        if self._reasons:
            gevent.spawn_later(0.1, self.finish)
            return
        runner = self._environment.runner
        if isinstance(runner, MasterRunner):
            # A worker without a user has nobody who would send.
            ids = [one.id for one in runner.clients.all if sum(one.user_classes_count.values()) > 0]
            for number, client in enumerate(ids):
                runner.send_message(GO, {"number": number, "count": len(ids)}, client)
            self._workers = len(ids)
        else:
            self._worker.go(0, 1)
            self._workers = 1
        self._waiting = self._workers
        self._start = time.monotonic() + _BEGIN_AFTER_S
        self._greenlets = [gevent.spawn(self._look), *map(self._later, range(len(self._prepared.failures)))]

    @property
    def _start_is_known(self) -> bool:
        return self._waiting > 0 or self._judged

    def add(self, data: dict[str, Any]) -> None:
        """What a worker reports."""
        if (content := data.get(REPORT_KEY)) is not None:
            self._tally.put(content)

    def done(self, data: dict[str, Any]) -> None:
        """A worker has sent all, and has all answers."""
        self.add(data)
        self._waiting -= 1
        if self._waiting == 0:
            gevent.spawn(self.finish)

    def finish(self) -> None:
        """Judge, write, and stop Locust."""
        self.conclude()
        self._stop()

    def conclude(self) -> None:
        """Judge what there is; once a run."""
        if self._judged or self._prepared is None:
            return
        self._judged = True
        self._end_greenlets()
        self._mend()
        prepared, tally = self._prepared, self._tally
        if self._worker.tally is not None:  # of this process
            tally.put(self._worker.tally.take())
        run = Run(
            tally,
            prepared.deployment.fleet,
            prepared.roles,
            prepared.timed,
            prepared.scenario.duration_s,
            prepared.failures,
            self._watch.observed(),
        )
        reasons = self._reasons or list(complaints(prepared.scenario.generator, tally, len(prepared.arrivals)))
        verdict = judge(run, prepared.objectives, reasons)
        self._environment.process_exit_code = verdict.outcome.exit_status
        self._write(prepared, run, verdict)

    def _write(self, prepared: Prepared, run: Run, verdict: Verdict) -> None:
        from .report import page

        self.result = document(prepared, self._tally, run, verdict, self._watch, self._workers)
        self.page = page(self.result)
        options = self._environment.parsed_options
        try:
            if options.verdict:
                write_atomically(Path(options.verdict), json.dumps(self.result, indent=1, allow_nan=False) + "\n")
            if options.report:
                write_atomically(Path(options.report), self.page)
        except RoutingError as error:
            tell(f"error: {error}")
            # What nobody can read is no verdict.
            self._environment.process_exit_code = Result.VOID.exit_status
        for line in lines(verdict):
            tell(line)

    def _stop(self) -> None:
        runner = self._environment.runner
        assert runner is not None
        if self._headless:
            runner.quit()
        else:
            runner.stop()

    def _look(self) -> None:
        while True:
            self._watch.look(time.monotonic() - self._start)
            gevent.sleep(_LOOK_EVERY_S)

    def _later(self, number: int) -> gevent.Greenlet:
        return gevent.spawn(self._break, number)

    def _break(self, number: int) -> None:
        """One failure of the scenario, from its beginning to its end."""
        prepared = self._prepared
        assert prepared is not None
        failure = prepared.failures[number]
        begin = prepared.timed(failure.at_s)
        end = prepared.timed(failure.until_s or prepared.scenario.duration_s)
        try:
            gevent.sleep(max(0.0, self._start + begin - time.monotonic()))
            what = f"{failure.region} {'is slow' if failure.slowness != 1.0 else 'is lost'} for {end - begin:.0f} s"
            tell(f"{begin:.0f} s: {what}" + ("" if prepared.breaker else ": do it now"))
            if prepared.breaker is not None:
                prepared.breaker.begin(failure, end - begin)
            self._broken.append(failure)
            gevent.sleep(max(0.0, self._start + end - time.monotonic()))
            self._broken.remove(failure)
            tell(f"{end:.0f} s: {failure.region} is well" + ("" if prepared.breaker else ": mend it now"))
            if prepared.breaker is not None:
                prepared.breaker.end(failure)
        except RoutingError as error:
            self._reasons.append(str(error))
            gevent.spawn(self.finish)

    def _mend(self) -> None:
        for failure in self._broken:
            if self._prepared is not None and self._prepared.breaker is not None:
                try:
                    self._prepared.breaker.end(failure)
                except RoutingError as error:
                    tell(f"error: {error}")
        self._broken = []

    def _end_greenlets(self) -> None:
        own = gevent.getcurrent()
        gevent.killall([one for one in self._greenlets if one is not own])
        self._greenlets = []


class Arrivals(User):
    """What Locust starts: one in each worker sends that worker's requests, whatever their number."""

    wait_time = constant(3600)  # after its one task
    worker: Worker | None = None

    @task
    def send(self) -> None:
        """Send, until all have been answered."""
        assert self.worker is not None
        self.worker.send()


def set_up(environment: Environment) -> Master | None:
    """Make a process of Locust part of a load test; the master of it, where this is one."""
    runner = environment.runner
    worker = Worker(environment)
    Arrivals.worker = worker
    if isinstance(runner, WorkerRunner):
        runner.register_message(GO, lambda environment, msg, **_: worker.go(msg.data["number"], msg.data["count"]))
        environment.events.test_start.add_listener(lambda **_: worker.reset())
        environment.events.report_to_master.add_listener(lambda client_id, data, **_: worker.report(data))
        return None
    assert isinstance(runner, LocalRunner | MasterRunner)
    master = Master(environment, worker)
    runner.register_message(DONE, lambda environment, msg, **_: master.done(msg.data))
    environment.events.test_start.add_listener(lambda **_: master.begin())
    environment.events.spawning_complete.add_listener(lambda **_: master.spawned())
    environment.events.worker_report.add_listener(lambda client_id, data, **_: master.add(data))
    # Who stops a run, or ends Locust, before it is over has no verdict of it.
    environment.events.test_stop.add_listener(lambda **_: master.conclude())
    environment.events.quitting.add_listener(lambda **_: master.conclude())
    master.check()
    return master


def _measure_cpu(tally: Tally) -> None:
    process = psutil.Process()
    process.cpu_percent()
    while True:
        gevent.sleep(_CPU_EVERY_S)
        tally.cpu_percent = max(tally.cpu_percent, process.cpu_percent())


def _roles(prepared: Prepared) -> str:
    return ", ".join(f"{role}: {' '.join(prepared.roles[role]) or 'nobody'}" for role in prepared.scenario.roles)
