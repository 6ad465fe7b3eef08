"""Prepares a load test, watches it, and judges it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NoReturn

import gevent
import psutil
from locust.env import Environment
from locust.runners import STATE_MISSING, MasterRunner

from laboratory.arrivals import write_trace
from laboratory.simulate.scenario import Failure
from routing.console import tell
from routing.errors import InputError, RoutingError
from routing.files import write_atomically

from .deployment import unfit
from .findings import Run
from .generator import complaints
from .options import Prepared, prepare
from .report import page
from .result import document
from .tally import Tally
from .verdict import WRONG_USE, Outcome, Verdict, judge, lines
from .watch import Watch
from .worker import BEGIN_AFTER_S, GO, REPORT_KEY, Worker, options_of

_LOOK_EVERY_S = 1.0
_OVERTIME_S = 60.0
_READY_WITHIN_S = 300.0  # a worker draws all arrivals first


def refuse(text: str) -> NoReturn:
    """End with 2 on wrong use, and with this process the workers that `--processes` made of it: Locust would leave them
    looking for a master for minutes.
    """
    tell(f"error: {text}")
    for worker in psutil.Process().children():
        worker.kill()
    raise SystemExit(WRONG_USE)


def refuse_tags(environment: Environment) -> None:
    """End with 2 where tags are chosen: nothing here has one, so that Locust would leave out all there is to do."""
    options = options_of(environment)
    for name, chosen in (("--tags", options.tags), ("--exclude-tags", options.exclude_tags)):
        if chosen:
            refuse(f"{name} {' '.join(chosen)}: a load test has no tags; leave it out")


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
        self._ready: dict[str, str] = {}
        self._waiting = 0
        self._workers = 0
        self._parts: frozenset[str] = frozenset()
        self._greenlets: list[gevent.Greenlet] = []
        self._judged = False
        self._start = 0.0
        self._broken: list[Failure] = []
        self.result: dict[str, Any] | None = None
        self.page = ""

    @property
    def _headless(self) -> bool:
        return bool(options_of(self._environment).headless)

    def check(self) -> None:
        """Before anything starts, where there is nobody to choose something else: end with 2 on wrong use."""
        options = options_of(self._environment)
        # One user a worker is what sends; as many as there are of them, at once.
        workers = max(1, options.processes or 0, options.expect_workers if options.master else 0)
        if options.num_users is None:
            options.num_users = workers
        if options.spawn_rate is None:
            options.spawn_rate = min(100, workers)
        if options.num_users < 1:
            refuse(f"--users: {options.num_users} users send nothing; leave it out")
        if not self._headless:
            return
        try:
            prepare(options)
        except InputError as error:
            refuse(str(error))

    def begin(self) -> None:
        """A run starts: see what it is, and whether it can be."""
        self._end_greenlets()
        self._judged, self.result, self._prepared = False, None, None
        self._reasons, self._broken, self._waiting, self._ready = [], [], 0, {}
        self._worker.reset()
        options = options_of(self._environment)
        try:
            prepared = prepare(options)
            if options.arrivals:
                write_trace(prepared.arrivals, Path(options.arrivals))
        except RoutingError as error:
            tell(f"error: {error}")
            self._environment.process_exit_code = error.exit_status
            gevent.spawn_later(0.1, self._stop)
            return
        self._prepared = prepared
        self._watch = Watch(prepared.deployment.control)
        self._tally = Tally(prepared.bin_s, prepared.deployment.fleet.service_time_s)
        self._reasons = list(unfit(prepared.deployment, prepared.headers))
        what = f"{prepared.scenario.name}: {len(prepared.arrivals)} requests in {prepared.seconds:.0f} s"
        tell(f"{what}, roles {_roles(prepared)}" if prepared.scenario.roles else what)

    def spawned(self) -> None:
        """Locust has asked for all users. It waits a second for workers to say that they have them: we wait for all."""
        if self._prepared is None or self._greenlets or self._judged:
            return
        if self._reasons:
            gevent.spawn_later(0.1, self.finish)
            return
        self._greenlets = [gevent.spawn(self._gather)]

    def ready(self, node: str, problem: str) -> None:
        """A worker has read its files and can send, or there is a problem."""
        self._ready[node] = problem

    def _gather(self) -> None:
        """Wait for all workers that have a user, and tell each which part is its own."""
        end = time.monotonic() + _READY_WITHIN_S
        while True:
            expected, there = self._expected(), self._there()
            if problems := sorted({problem for problem in self._ready.values() if problem}):
                why = f"a worker cannot send: {problems[0]}"
                break
            if 0 < expected <= len(there):
                self._go(there)
                return
            if time.monotonic() > end:
                why = f"{len(there)} of {expected} workers were ready to send within {_READY_WITHIN_S:g} s"
                break
            gevent.sleep(0.05)
        self._reasons.append(why)
        gevent.spawn(self.finish)

    def _expected(self) -> int:
        """How many workers have somebody who sends: a user each, as long as there are users."""
        runner = self._environment.runner
        if not isinstance(runner, MasterRunner):
            return 1
        alive = [one for one in runner.clients.all if one.state != STATE_MISSING]
        return min(int(runner.target_user_count), len(alive))

    def _there(self) -> list[str]:
        """Those of them that are ready, in the order in which they said so."""
        runner = self._environment.runner
        if not isinstance(runner, MasterRunner):
            return list(self._ready)
        alive = {one.id for one in runner.clients.all if one.state != STATE_MISSING}
        return [node for node in self._ready if node in alive]

    def _go(self, nodes: list[str]) -> None:
        assert self._prepared is not None
        runner = self._environment.runner
        self._workers = self._waiting = len(nodes)
        if isinstance(runner, MasterRunner):
            for number, node in enumerate(nodes):
                runner.send_message(GO, {"number": number, "count": len(nodes)}, node)
            self._parts = frozenset(nodes)
        else:
            self._worker.go(0, 1)
        self._start = time.monotonic() + BEGIN_AFTER_S
        self._greenlets += [gevent.spawn(self._look), *map(self._later, range(len(self._prepared.failures)))]

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
        self.result = document(prepared, self._tally, run, verdict, self._watch, self._workers)
        self.page = page(self.result)
        options = options_of(self._environment)
        try:
            if options.verdict:
                write_atomically(Path(options.verdict), json.dumps(self.result, indent=1, allow_nan=False) + "\n")
            if options.report:
                write_atomically(Path(options.report), self.page)
        except RoutingError as error:
            tell(f"error: {error}")
            # What nobody can read is no verdict.
            self._environment.process_exit_code = Outcome.VOID.exit_status
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
            if why := self._hopeless():
                self._reasons.append(why)
                gevent.spawn(self.finish)
                return

    def _hopeless(self) -> str:
        """Why this run will have no end that can be judged, or nothing."""
        prepared, runner = self._prepared, self._environment.runner
        assert prepared is not None
        if isinstance(runner, MasterRunner):
            lost = self._parts - {one.id for one in runner.clients.all if one.state != STATE_MISSING}
            if lost and self._waiting:
                return f"{len(lost)} of {self._workers} workers were lost"
        if time.monotonic() > self._start + prepared.seconds + prepared.timeout_s + _OVERTIME_S:
            return "some workers have not ended long after the last request could have"
        return ""

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


def _roles(prepared: Prepared) -> str:
    return ", ".join(f"{role}: {' '.join(prepared.roles[role]) or 'nobody'}" for role in prepared.scenario.roles)
