"""Sends jobs upstream, writes down what becomes of them, takes over those of processes that died, and sweeps up.

What a killed process leaves is a job with a lease. Whoever finds the lease lapsed looks for the job's video first: a
computation whose video was written is not paid for again. Otherwise the job goes back to the queue, in its old place.
The computation itself has stopped by then: the connection closed with the process, and the server stops at its next
step.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from .clock import Clock
from .errors import ApiError, StorageError, problem
from .files import Files
from .limits import Limits
from .metrics import Metrics
from .pace import Pace
from .records import Job, new_id
from .settings import PRIORITIES, Settings
from .store import Store
from .upstream import Clip, Failed, Lost, Refused, Upstream

T = TypeVar("T")
logger = logging.getLogger("stillmotion.jobs")

_BATCH = PRIORITIES.index("batch")
_LOOK_S = 1.0
_SWEEP_S = 15.0
_TIDY_S = 600.0
_ORPHAN_S = 3600.0
_SAVE_S = 600.0
_WRITE_S = 10.0
CLASS_HEADER = "X-Job-Class"  # what a dispatcher of GPU servers orders its line by


@dataclass
class Flight:
    """A job that this process has sent.

    Attributes:
        step, steps: done and of all.
        began: whether the upstream computes it.
        started: when it began, monotonic.
        computed: whether its video is here; only writing it down is left.
    """

    job: Job
    task: asyncio.Task[None] | None = None
    step: int = 0
    steps: int = 0
    began: bool = False
    started: float | None = None
    computed: bool = False

    @property
    def progress(self) -> int:
        """Per cent; 100 is left to a job whose video can be fetched."""
        return min(99, 100 * self.step // self.steps) if self.steps else 0


class Dispatcher:
    """One process's part in the work."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        files: Files,
        upstream: Upstream,
        limits: Limits,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._settings, self._store, self._files, self._upstream = settings, store, files, upstream
        self._limits, self._metrics, self._clock = limits, metrics, clock
        self.worker = new_id("worker")
        self.pace = Pace(settings.most_in_flight)
        self.flights: dict[str, Flight] = {}
        self.average_s = 10.0
        """Moving average of a job's time in flight."""
        self._wake = asyncio.Event()
        self._draining = asyncio.Event()
        self._missing = ""  # why jobs could not be sent just now, where there was nobody to take them
        self._loops: list[asyncio.Task[None]] = []
        self._answered, self._trusted_from = -float("inf"), 0.0  # monotonic; see `_others_can_renew`
        self._notes: set[asyncio.Task[None]] = set()
        self._claiming = asyncio.Lock()

    def start(self) -> None:
        """Begin to work, in the running event loop."""
        beat_s = self._settings.lease_s / 6
        rounds = {
            self._send: _LOOK_S,
            self._renew: beat_s,
            self._take_over: beat_s,
            self._sweep: min(_SWEEP_S, max(0.1, self._settings.expires_s)),
            self._tidy: _TIDY_S,
        }
        for work, every_s in rounds.items():
            self._loops.append(asyncio.create_task(self._again(work, every_s)))

    async def stop(self) -> None:
        """Take no more jobs, wait for those in flight for a while, and give the rest back."""
        self._draining.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WRITE_S), self._claiming:
                pass  # a job that is just being claimed is in flight now, or given back
        tasks = {flight.task: flight for flight in self.flights.values() if flight.task}
        if tasks:
            logger.info("%d jobs in flight; waiting up to %g s for them", len(tasks), self._settings.drain_s)
            await asyncio.wait(tasks, timeout=self._settings.drain_s)
            for task, flight in tasks.items():
                if not flight.computed:
                    task.cancel("the service stops")
            await asyncio.wait(tasks, timeout=_WRITE_S)
            for task in tasks:
                task.cancel("the service stops")
            await asyncio.gather(*tasks, return_exceptions=True)
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)

    def wake(self) -> None:
        """Look at the queue now: there is a new job, or room for one."""
        self._wake.set()

    async def cancel(self, job_id: str) -> bool:
        """Stop a job that was deleted, where this process has it; its connection is closed when this returns.

        Where another process has it, that one sees the mark in the database within a sixth of `lease_s`.
        """
        flight = self.flights.get(job_id)
        if flight is None or flight.task is None:
            return False
        flight.job = replace(flight.job, deleted=True)
        flight.task.cancel("deleted")
        await asyncio.wait({flight.task})
        return True

    def current(self, job: Job) -> Job:
        """Return a job with what this process knows of it and has not written down yet."""
        flight = self.flights.get(job.id)
        if flight is None or job.attempts != flight.job.attempts:
            return job
        return replace(job, began=job.began or flight.began, progress=max(job.progress, flight.progress))

    def state(self, *, reachable: bool) -> str:
        """Return how things are, in a word: draining, unreachable, busy or ready."""
        if self._draining.is_set():
            return "draining"
        if (self._missing or not reachable) and not self.pace.computing:
            return "unreachable"
        return "busy" if self.pace.busy(time.monotonic()) else "ready"

    def poll_after_ms(self, job: Job) -> int:
        """Return when a client should ask again: about ten times a job, and rarely while it waits."""
        flight = self.flights.get(job.id)
        if flight is not None and flight.began:
            return int(1000 * min(5.0, max(0.25, self.average_s / 10)))
        return int(1000 * min(10.0, max(0.5, self.average_s / 5)))

    def wait_s(self, queued: int) -> float:
        """Return about how long so many jobs take before there is room for another one."""
        return min(300.0, max(1.0, queued * self.average_s / max(1, self.pace.in_flight)))

    # ------------------------------------------------------------------ loops

    async def _again(self, work: Callable[[], Awaitable[None]], every_s: float) -> None:
        """Do a piece of work again and again; a store that is gone only makes it late."""
        while True:
            try:
                await work()
            except StorageError as error:
                logger.warning("%s", error)
                await asyncio.sleep(1.0)
            except Exception:
                logger.exception("a round of %s failed", work.__name__)
                await asyncio.sleep(1.0)
            if work == self._send:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(every_s, self.pace.held_s(time.monotonic()) or every_s)):
                        await self._wake.wait()
                self._wake.clear()
            else:
                await asyncio.sleep(every_s)

    async def _send(self) -> None:
        """Send jobs as long as there are some, and room for them."""
        while not self._draining.is_set():
            now = time.monotonic()
            if not self.pace.room(now, batch=False):
                return
            # A batch job goes only where no interactive one could be sent in its place.
            last = _BATCH if self.pace.room(now, batch=True) else _BATCH - 1
            async with self._claiming:
                job = await self._call(self._store.claim, self.worker, self._clock(), self._settings.lease_s, last)
                if job is None:
                    return
                if self._draining.is_set():
                    await self._release(job, 0.0, counts=False)
                    return
                flight = Flight(job)
                self.flights[job.id] = flight
                self.pace.sent()
                flight.task = asyncio.create_task(self._fly(flight))
            await asyncio.sleep(0)

    async def _renew(self) -> None:
        await self._call(self._clock.look)
        progress = {job_id: flight.progress if flight.began else None for job_id, flight in self.flights.items()}
        known = set(self.flights)
        if not known:
            return
        lease = self._clock() + self._settings.lease_s
        mine, deleted = await self._call(self._store.renew, self.worker, lease, progress)
        for job_id in deleted & known:
            await self.cancel(job_id)
        for job_id in known - mine:
            # Ended meanwhile; or this process was stopped for so long that another one has the job now.
            if (flight := self.flights.get(job_id)) is not None and flight.task is not None:
                await asyncio.sleep(0.1)
                if self.flights.get(job_id) is flight:
                    flight.task.cancel("taken over")

    async def _take_over(self) -> None:
        if not await self._others_can_renew():
            return
        now = self._clock()
        for job in await self._call(self._store.lapsed, now, self.worker, now + self._settings.lease_s):
            if job.id in self.flights:
                continue  # our own, late
            if job.deleted:
                await self.remove(job)
                continue
            logger.warning("%s was left by its process", job.id)
            about = await self._files.saved_video(job.id)
            if about is not None:
                await self._finish(job, about)
            else:
                await self._lose(job, "its process was lost")

    async def _others_can_renew(self) -> bool:
        """Whether the database has been there for long enough that whoever is alive has prolonged its leases.

        After the database was gone all of them have lapsed, and the first one back would take everybody's jobs.
        """
        await self._call(self._clock.look)
        now, lease_s = time.monotonic(), self._settings.lease_s
        if now - self._answered > lease_s / 2:
            self._trusted_from = now + lease_s
        self._answered = now
        return self._store.is_sqlite or now >= self._trusted_from

    async def _sweep(self) -> None:
        """Remove what has expired."""
        while expired := await self._call(self._store.expired, self._clock()):
            failed: StorageError | None = None
            for job in expired:
                try:
                    await self.remove(job)
                except StorageError as error:  # the others must not wait for one that cannot be removed
                    failed = error
            if failed is not None:
                raise failed

    async def _tidy(self) -> None:
        """Remove files that belong to no job: a process died between writing a picture and its row."""
        if not await self._files.belong_to(await self._call(self._store.name)):
            logger.error("files: another database's jobs lie there; what belongs to no job is left alone")
            return
        for job_id in await self._call(self._store.unknown, sorted(await self._files.old_ids(_ORPHAN_S))):
            await self._files.remove(job_id)

    async def remove(self, job: Job) -> None:
        """Remove a job: its files first, so that a row is left while there is one."""
        await self._files.remove(job.id)
        await self._call(self._store.drop, [job.id])

    # ------------------------------------------------------------------ one job

    async def _fly(self, flight: Flight) -> None:
        """Send a job and write down its end, whatever that is."""
        job = flight.job
        try:
            clip = await self._computed(flight)
            flight.computed = True
            self._average(flight)
            about = {**clip.about, "bytes": len(clip.data)}
            if await self._kept_on(lambda: self._files.save_video(job.id, clip.data, about), _SAVE_S):
                await self._kept_on(lambda: self._finish(job, about))
            else:
                message = f"there was no room for the video for {_SAVE_S:g} s"
                await self._kept_on(lambda: self._fail(job, "storage", message))
        except Refused as refusal:
            self.pace.refused(time.monotonic(), refusal.wait_s)
            self._metrics.refused.labels(reason="busy" if refusal.busy else "unavailable").inc()
            missing = "" if refusal.busy else str(refusal)
            if missing and missing != self._missing:
                logger.warning("%s; jobs wait", missing)
            self._missing = missing
            # It keeps its place: the pace, and not the job, waits.
            await self._kept_on(lambda: self._release(job, 0.0, counts=False))
        except Lost as error:
            self._metrics.lost.inc()
            logger.warning("%s: %s", job.id, error)
            message = str(error)
            await self._kept_on(lambda: self._lose(job, message))
        except Failed as error:
            code, message, param = error.code, str(error), error.param
            await self._kept_on(lambda: self._fail(job, code, message, param))
        except asyncio.CancelledError as cancelled:
            await self._let_go(flight, str(cancelled.args[0]) if cancelled.args else "")
        except Exception:
            logger.exception("%s failed", job.id)
            await self._kept_on(lambda: self._lose(job, "the job service failed at it; its log says why"))
        finally:
            if self.flights.get(job.id) is flight:  # it may have been claimed again by now
                del self.flights[job.id]
            self.pace.ended(began=flight.began)
            self.wake()

    async def _computed(self, flight: Flight) -> Clip:
        job, sent = flight.job, time.monotonic()

        def on_start() -> None:
            flight.began, flight.started = True, time.monotonic()
            self._missing = ""
            self.pace.began(flight.started - sent)
            note = asyncio.create_task(self._note_start(job))
            self._notes.add(note)
            note.add_done_callback(self._notes.discard)
            self._metrics.waited.observe(max(0.0, self._clock() - job.created))
            self.wake()

        def on_step(done: int, total: int) -> None:
            flight.step, flight.steps = done, total

        headers = {"X-Request-Id": job.id, CLASS_HEADER: PRIORITIES[job.priority]}
        try:
            fields = await self._limits.in_frames(job.fields)
        except ApiError as error:
            raise Failed(error.code, error.message, error.param) from error
        if fields is None:
            raise Refused("no server says how long a clip of its model can be", 2.0, busy=False)
        return await self._upstream.animate(
            {"prompt": job.prompt, **fields}, await self._pictures(job), headers, on_start, on_step
        )

    async def _note_start(self, job: Job) -> None:
        with contextlib.suppress(StorageError):  # `_renew` writes it as well, only later
            await self._call(self._store.start, job)

    async def _let_go(self, flight: Flight, why: str) -> None:
        """After a cancellation: the connection is closed by now."""
        job = flight.job
        if job.deleted:
            self._metrics.finished.labels(outcome="deleted").inc()
            await self._kept_on(lambda: self.remove(job), 5.0)
        elif why == "taken over":
            logger.warning("%s: another process has it now", job.id)
        elif flight.computed:
            logger.warning("%s: its video could not be noted; whoever takes it over finds it", job.id)
        else:
            await self._kept_on(lambda: self._release(job, 0.0, counts=False), 5.0)

    async def _release(self, job: Job, available: float, *, counts: bool) -> None:
        await self._call(self._store.release, job, available, counts=counts)

    async def _lose(self, job: Job, why: str) -> None:
        """A computation was lost: another one is begun, unless that happened too often."""
        if job.attempts >= self._settings.most_attempts:
            await self._fail(job, "lost", f"its computation was lost {job.attempts} times; the last time: {why}")
        else:
            await self._release(job, self._clock() + min(60.0, 2.0**job.attempts - 1), counts=True)

    async def _fail(self, job: Job, code: str, message: str, param: str | None = None) -> None:
        error, now = problem(code, message, param), self._clock()
        if await self._call(self._store.finish, job, now, now + self._settings.expires_s, error=error):
            self._metrics.finished.labels(outcome="failed").inc()

    async def _finish(self, job: Job, about: Mapping[str, object]) -> None:
        now = self._clock()
        if await self._call(self._store.finish, job, now, now + self._settings.expires_s, result=about):
            self._metrics.finished.labels(outcome="completed").inc()

    def _average(self, flight: Flight) -> None:
        if flight.started is not None:
            took = time.monotonic() - flight.started
            self._metrics.computed.observe(took)
            self.average_s += 0.2 * (took - self.average_s)

    async def _kept_on(self, work: Callable[[], Awaitable[None]], for_s: float = float("inf")) -> bool:
        """Do a piece of work as soon as the stores answer; whether that was in time."""
        end, wait_s = time.monotonic() + for_s, 0.2
        while True:
            try:
                await work()
            except StorageError as error:
                logger.warning("%s; trying again", error)
                if time.monotonic() + wait_s > end:
                    return False
                await asyncio.sleep(wait_s)
                wait_s = min(10.0, 2 * wait_s)
            else:
                return True

    async def _pictures(self, job: Job) -> dict[str, bytes]:
        pictures = {}
        for name in job.pictures:
            try:
                picture = await self._files.get(job.id, name)
            except StorageError as error:  # nothing was begun, and it may come back
                raise Refused(str(error), 5.0, busy=False) from error
            if picture is None:
                raise Failed("picture_lost", f"the job's file {name} is gone from the store", name)
            pictures[name] = picture
        return pictures

    async def _call(self, method: Callable[..., T], *arguments: object, **named: object) -> T:
        return await asyncio.to_thread(method, *arguments, **named)
