"""`python -m laboratory.local.supervisor`: keeps the programs of a fleet running, and ends them all when it ends.

It starts them stage by stage, starts again what ends by itself, after a pause that doubles up to ten seconds, and
writes down what runs. A program that `components.json` comes to describe otherwise is ended, and started as it says.
 When it is killed, the kernel kills them (`processes.spawn`). `up` starts it, and holds the
other end of a pipe, its lifeline, until the fleet is ready: should `up` be killed before, all is taken down.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from .processes import MARK, kill, marked, spawn
from .records import LOGS, STATE, WANTED, Component, Phase, Running, State, read_wanted, write_state

RELEASED = b"ready"
"""What `up` says before it lets the lifeline go."""
_TURN_S = 0.1
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
_WELL_AFTER_S = 10.0  # a program that ran for so long has not failed to start: its next pause is short again


class Watched:
    """One program: started, watched, started again.

    Args:
        component: what it is.
        folder: of the fleet.
    """

    def __init__(self, component: Component, folder: Path) -> None:
        self.component, self._folder = component, folder
        self.running = Running(name=component.name)
        self.process: subprocess.Popen[bytes] | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._began_at = 0.0
        self._due_at = 0.0
        self._kill_at: float | None = None

    def become(self, component: Component, now: float) -> None:
        """End the program, and start it as is said now."""
        self.component, self._pause_s = component, _FIRST_PAUSE_S
        self._kill_at = now + component.stop_s
        self.terminate()

    def turn(self, now: float) -> bool:
        """Start it if it is due, notice if it has ended; whether something changed."""
        if self.process is None:
            if now < self._due_at:
                return False
            self._start(now)
            return True
        status = self.process.poll()
        if status is None:
            if self._kill_at is not None and now > self._kill_at:
                self.kill()
            return False
        # What it started itself may still run, and hold its ports.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._ended(status, now)
        return True

    def listens(self) -> bool:
        """Whether each of its ports takes connections."""
        return self.process is not None and all(_connects(port) for port in self.component.ports)

    def terminate(self) -> None:
        """Ask it to end."""
        if self.process is not None:
            self.process.terminate()

    def kill(self) -> None:
        """End it and its group."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _start(self, now: float) -> None:
        component = self.component
        environment = {**os.environ, **component.environment, MARK: str(self._folder)}
        with (self._folder / LOGS / f"{component.name}.log").open("ab") as log:
            try:
                folder = Path(component.folder) if component.folder else None
                self.process = spawn(component.command, log, environment, folder)
            except OSError as error:
                log.write(f"{error}\n".encode())
                self.running = Running(name=component.name, starts=self.running.starts + 1)
                self._ended(127, now)
                return
        self._began_at, self._kill_at = now, None
        self.running = self.running.model_copy(update={"pid": self.process.pid, "starts": self.running.starts + 1})

    def _ended(self, status: int, now: float) -> None:
        if now - self._began_at >= _WELL_AFTER_S and self.process is not None:
            self._pause_s = _FIRST_PAUSE_S
        _say(f"{self.component.name} ended with {status}; starts again in {self._pause_s:.1f} s")
        self.process, self._due_at = None, now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self.running = self.running.model_copy(update={"pid": None, "exit_status": status})


class Supervisor:
    """All programs of a fleet.

    Args:
        folder: of the fleet.
        lifeline: descriptor of the pipe.
    """

    def __init__(self, folder: Path, lifeline: int) -> None:
        self._folder, self._lifeline = folder, lifeline
        self._watched = [Watched(one, folder) for one in sorted(read_wanted(folder), key=lambda one: one.stage)]
        self._wanted_at = self._when_wanted()
        self._stages = sorted({one.component.stage for one in self._watched})
        self._phase: Phase = "starting"
        self._stopping = False

    def run(self) -> None:
        """Until a signal, or until the lifeline is cut."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        stage, stage_at = 0, time.monotonic()
        self._write()
        try:
            while not self._stopping:
                now = time.monotonic()
                ready = self._stages[: stage + 1]
                changed = [one for one in self._watched if one.component.stage in ready and one.turn(now)]
                if self._phase == "running":
                    self._follow(now)
                if self._phase == "starting" and self._passed(self._stages[stage], now - stage_at):
                    stage, stage_at = stage + 1, now
                    if stage == len(self._stages):
                        self._phase = "running"
                        _say("all parts run")
                        changed = self._watched
                if changed:
                    self._write()
                self._sleep()
        finally:
            self._end()

    def _follow(self, now: float) -> None:
        """Let programs become what `components.json` says by now."""
        if (at := self._when_wanted()) == self._wanted_at:
            return
        try:
            wanted = {one.name: one for one in read_wanted(self._folder)}
        except (OSError, ValueError):
            return
        self._wanted_at = at
        for one in self._watched:
            component = wanted.get(one.component.name, one.component)
            if component != one.component:
                one.become(component, now)

    def _when_wanted(self) -> int:
        try:
            return (self._folder / WANTED).stat().st_mtime_ns
        except OSError:
            return 0

    def _passed(self, stage: int, seconds: float) -> bool:
        """Whether the next stage may start."""
        waited = [one for one in self._watched if one.component.stage == stage]
        return all(seconds > one.component.ready_s or one.listens() for one in waited)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _sleep(self) -> None:
        watched = [self._lifeline] if self._lifeline >= 0 else []
        readable, _, _ = select.select(watched, [], [], _TURN_S)
        if readable:
            word = os.read(self._lifeline, 64)
            if word != RELEASED:
                _say("whoever started this has gone; everything ends")
                self._stopping = True
            os.close(self._lifeline)
            self._lifeline = -1

    def _write(self) -> None:
        components = tuple(one.running for one in self._watched)
        write_state(self._folder, State(pid=os.getpid(), phase=self._phase, components=components))

    def _end(self) -> None:
        """End all, those that take requests first."""
        self._phase = "stopping"
        self._write()
        for stage in reversed(self._stages):
            running = [one for one in self._watched if one.component.stage == stage and one.process is not None]
            for one in running:
                one.terminate()
            end = time.monotonic() + max((one.component.stop_s for one in running), default=0.0)
            while time.monotonic() < end and any(one.process and one.process.poll() is None for one in running):
                time.sleep(0.02)
            for one in running:
                one.kill()
        kill(marked(self._folder))
        (self._folder / STATE).unlink(missing_ok=True)
        _say("everything has ended")


def _connects(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(0.5)
        return one.connect_ex(("127.0.0.1", port)) == 0


def _say(text: str) -> None:
    moment = time.strftime("%Y-%m-%d %H:%M:%S")
    sys.stderr.write(f"{moment} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    Supervisor(Path(sys.argv[1]), int(sys.argv[2])).run()
