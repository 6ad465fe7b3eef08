"""Whatever happens to jobs in whatever order, each is in one state, and ends at most once."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from jobs.records import Job, State, new_id
from jobs.settings import EVERYONE
from jobs.store import Store

WORKERS = st.sampled_from(["one", "two"])


class Life(RuleBasedStateMachine):
    """Two workers, one of which may be heard of no more, and clients."""

    held = Bundle("held")

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(f"sqlite:///{Path(self.folder.name) / 'jobs.sqlite3'}")
        self.store.create()
        self.now, self.numbers = 0.0, itertools.count(1)
        self.made, self.ended, self.deleted = [], {}, set()

    def teardown(self):
        self.store.close()
        self.folder.cleanup()

    @rule(priority=st.integers(0, 1))
    def submit(self, priority):
        number = next(self.numbers)
        job = Job(
            id=new_id("video"), seq=number, owner="everyone", model="m", prompt="p", seconds="1", size="s",
            created=self.now, priority=priority, webhook="https://example.org/",
        )  # fmt: skip
        self.made.append(self.store.submit(job, EVERYONE, 100, 1.0)[0].id)

    @rule(target=held, worker=WORKERS)
    def claim(self, worker):
        job = self.store.claim(worker, self.now, 10.0, 1)
        return multiple() if job is None else job

    @rule(job=consumes(held), counts=st.booleans())
    def release(self, job, counts):
        self.store.release(job, self.now, counts=counts)

    @rule(job=held, failed=st.booleans())
    def finish(self, job, failed):
        how = {"error": {"code": "c", "message": "m"}} if failed else {"result": {"seed": "1"}}
        if self.store.finish(job, self.now, self.now + 100, **how) is not None:
            assert job.id not in self.ended, "a job ended twice"
            assert job.id not in self.deleted, "a job ended that was deleted"
            self.ended[job.id] = State.FAILED if failed else State.COMPLETED

    @rule(worker=WORKERS)
    def renew(self, worker):
        self.store.renew(worker, self.now + 10, dict.fromkeys(self.made))

    @rule(seconds=st.integers(1, 20))
    def wait(self, seconds):
        self.now += seconds

    @rule(target=held, worker=WORKERS)
    def take_over(self, worker):
        return multiple(*self.store.lapsed(self.now, worker, self.now + 10))

    @rule(data=st.data())
    def delete(self, data):
        if self.made:
            job = data.draw(st.sampled_from(self.made))
            if self.store.delete(job, "everyone") is not None:
                self.deleted.add(job)

    @invariant()
    def each_job_is_there_and_what_has_ended_stays_so(self):
        found, _ = self.store.page("everyone", None, 100, ascending=True)
        assert [job.id for job in found] == [job for job in self.made if job not in self.deleted]
        for job in found:
            assert job.state == self.ended.get(job.id, job.state)
            assert (job.id in self.ended) == (job.state in (State.COMPLETED, State.FAILED))
            assert (job.worker is not None) == (job.state == State.IN_PROGRESS)
            assert job.attempts >= 0
        assert self.store.webhooks_left() == len(self.ended), "a job's end and its webhook are written together"


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=8, stateful_step_count=25, deadline=None)
