"""Processes and their supervisor: what ends is started again, and nothing outlives its fleet."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from laboratory.local.processes import MARK, down, kill, marked, of_fleet, spawn
from laboratory.local.records import (
    LOGS,
    STATE,
    Component,
    Running,
    State,
    read_state,
    read_wanted,
    write_state,
    write_wanted,
)
from laboratory.local.supervisor import RELEASED

from ...waiting import until

ROOT = Path(__file__).resolve().parents[3]
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel does not tie processes to each other")
SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


def test_a_process_is_of_the_fleet_whose_mark_it_has_until_it_ends(tmp_path):
    process = subprocess.Popen(SLEEP, env={**os.environ, MARK: str(tmp_path)})
    assert until(lambda: of_fleet(process.pid, tmp_path)).pid == process.pid  # once it is more than a fork
    assert of_fleet(process.pid, tmp_path / "other") is None  # as when the id was another's before
    process.kill()
    until(lambda: of_fleet(process.pid, tmp_path) is None)  # before it is waited for
    assert process.wait() == -signal.SIGKILL
    assert of_fleet(None, tmp_path) is None


def test_what_does_not_end_gently_is_killed():
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"on\n"
    one = psutil.Process(process.pid)
    began = time.monotonic()
    assert kill([one], gently_s=0.3) == 1
    assert time.monotonic() - began >= 0.3
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


@linux
def test_processes_are_found_by_their_mark_with_those_that_they_started(tmp_path):
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    environment = {**os.environ, MARK: str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code + "time.sleep(600)"], env=environment)
    until(lambda: len(marked(tmp_path)) == 2)
    assert marked(tmp_path.parent) == []
    assert kill(marked(tmp_path)) == 2
    process.wait()
    assert marked(tmp_path) == []


@linux
def test_a_spawned_process_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom laboratory.local.processes import spawn\n"
        "with open(sys.argv[1], 'wb') as log:\n"
        "    child = spawn([sys.executable, '-c', 'import time; time.sleep(600)'], log, os.environ)\n"
        "print(child.pid, flush=True)\ntime.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not psutil.pid_exists(child))


@linux
def test_a_spawned_process_leads_a_group_of_its_own(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        process = spawn(SLEEP, log, os.environ)
    assert os.getpgid(process.pid) == process.pid
    kill([psutil.Process(process.pid)])
    process.wait()


def test_what_is_to_run_and_what_runs_are_read_as_they_were_written(tmp_path):
    component = program("a", 1, ("program", "--flag"), ports=(1, 2), environment={"NAME": "value"}, stop_s=2.0)
    write_wanted(tmp_path, (component,))
    assert read_wanted(tmp_path) == (component,)
    state = State(pid=1, phase="running", components=(Running(name="a", pid=2, starts=3, exit_status=-9),))
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"pid": 1}', '{"pid": 1, "phase": "running", "components": [{}]}'])
def test_a_damaged_state_is_none(tmp_path, text):
    (tmp_path / STATE).write_text(text)
    assert read_state(tmp_path) is None


class Supervised:
    """A supervisor, and the end of its lifeline."""

    def __init__(self, folder):
        theirs, self.lifeline = os.pipe()
        with (folder / "supervisor.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "laboratory.local.supervisor", str(folder), str(theirs)],
                cwd=ROOT,
                pass_fds=(theirs,),
                env={**os.environ, MARK: str(folder)},
                stderr=log,
            )
        os.close(theirs)

    def let_go(self, word=b""):
        os.write(self.lifeline, word)
        os.close(self.lifeline)
        self.lifeline = -1


@pytest.fixture
def supervised(tmp_path):
    """Starts a supervisor of these programs."""
    opened = []

    def run(*components):
        (tmp_path / LOGS).mkdir()
        write_wanted(tmp_path, components)
        opened.append(Supervised(tmp_path))
        return opened[-1]

    yield run
    for one in opened:
        if one.lifeline >= 0:
            one.let_go()
        down(tmp_path)
        one.process.wait()


def program(name, stage=0, command=SLEEP, **more):
    return Component(name=name, kind="gpu", region="", stage=stage, command=command, **more)


def running(folder):
    state = read_state(folder)
    return state if state is not None and state.phase == "running" else None


def test_the_supervisor_starts_all_and_starts_again_what_ends(supervised, tmp_path):
    supervised(program("a"), program("b", 1))
    first = until(lambda: running(tmp_path)).components
    assert [one.name for one in first] == ["a", "b"]
    for times in (1, 2):
        os.kill(read_state(tmp_path).components[0].pid, signal.SIGKILL)
        state = until(lambda n=times: (s := read_state(tmp_path)) and s.components[0].starts == n + 1 and s)
        assert state.components[0].exit_status == -signal.SIGKILL
    assert state.components[1] == first[1]


def test_what_ends_again_and_again_is_started_ever_less_often(supervised, tmp_path):
    began = time.monotonic()
    supervised(program("a", command=(sys.executable, "-c", "raise SystemExit(3)")))
    until(lambda: (s := read_state(tmp_path)) and s.components and s.components[0].starts == 4)
    # Pauses of .2, .4 and .8 s lie between them; without they would follow each other at once.
    assert time.monotonic() - began >= 1.4
    assert read_state(tmp_path).components[0].exit_status == 3
    pauses = re.findall(r"a ended with 3; starts again in (\S+) s", (tmp_path / "supervisor.log").read_text())
    assert pauses[:3] == ["0.2", "0.4", "0.8"]


def test_a_program_that_is_not_there_is_noted(supervised, tmp_path):
    supervised(program("a", command=("/no/such/program",)))
    until(lambda: (s := read_state(tmp_path)) and s.components and s.components[0].exit_status == 127)
    assert "No such file" in (tmp_path / LOGS / "a.log").read_text()


def test_all_end_with_the_lifeline_unless_it_was_released(supervised, tmp_path):
    one = supervised(program("a"))
    pid = until(lambda: running(tmp_path)).components[0].pid
    one.let_go()
    assert one.process.wait(60) == 0
    assert not psutil.pid_exists(pid)
    assert not (tmp_path / STATE).exists()


def test_a_released_supervisor_stays_until_it_is_told_to_end(supervised, tmp_path):
    one = supervised(program("a"), program("b", 1))
    until(lambda: running(tmp_path))
    one.let_go(RELEASED)
    # It has read the word once it notices what else happens: one of its programs ends.
    os.kill(read_state(tmp_path).components[0].pid, signal.SIGKILL)
    until(lambda: (s := read_state(tmp_path)) and s.components[0].starts == 2)
    assert one.process.poll() is None
    assert down(tmp_path) == 3
    assert one.process.wait(60) == 0
    assert down(tmp_path) == 0


@linux
def test_nothing_is_left_of_a_supervisor_that_is_killed_and_of_what_its_programs_started(supervised, tmp_path):
    # The program's child is in a session of its own, as a daemon's is: neither the kernel nor a group ends it.
    code = (
        "import subprocess, sys, time; "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); "
        "time.sleep(600)"
    )
    one = supervised(program("a", command=(sys.executable, "-c", code)))
    until(lambda: len(marked(tmp_path)) == 3)
    one.process.kill()
    one.process.wait()
    until(lambda: len(marked(tmp_path)) == 1)
    assert down(tmp_path) == 1
    assert marked(tmp_path) == []
