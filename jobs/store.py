"""Jobs in a database, and the steps from one state to the next.

Each method is one transaction: a process that is killed leaves the state before it or the state after it. Methods
block; the service calls them in threads. Times are seconds since 1970, given by the caller (`clock`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, Row, and_, case, delete, func, insert, literal_column, or_, select, update

from .database import Database
from .errors import ApiError
from .records import Delivery, Job, State, deliveries, jobs, new_id, submissions
from .settings import Key

_SUBMITTING = 7301  # number of one of PostgreSQL's advisory locks
_DAY_S = 86_400.0


class Store(Database):
    """Jobs and webhooks.

    Args:
        url: of the database.
        share_of: weight of an owner, where several wait.
    """

    def __init__(self, url: str, share_of: Callable[[str], float] = lambda _: 1.0) -> None:
        super().__init__(url)
        self._share_of = share_of

    # ------------------------------------------------------------------ clients

    def submit(self, job: Job, key: Key, most_queued: int, wait_s: float) -> tuple[Job, bool]:
        """Put a job into the queue.

        Args:
            key: of its owner, with its quota.
            most_queued: bound on the queue.
            wait_s: what a refused client is told to wait.

        Returns:
            The job, or the one that was made with the same idempotency key before; and whether it is new.

        Raises:
            ApiError: the queue or a quota is full (429), or the idempotency key was used for another request (422).
        """
        with self.writing(_SUBMITTING) as connection:
            known = job.idempotency and self._known(connection, job.owner, job.idempotency, job.digest)
            if known:
                return known, False
            mine = jobs.c.owner == job.owner
            if self._count(connection, jobs.c.state == State.QUEUED) >= most_queued:
                raise ApiError(429, "queue_full", f"the queue is at its limit of {most_queued} jobs", None, wait_s)
            if key.most_unfinished is not None:
                unfinished = jobs.c.state.in_((State.QUEUED, State.IN_PROGRESS))
                if self._count(connection, mine, unfinished) >= key.most_unfinished:
                    message = f"{key.name} has its limit of {key.most_unfinished} unfinished jobs"
                    raise ApiError(429, "too_many_jobs", message, None, wait_s)
            if key.per_day is not None:
                self._count_submission(connection, job, key, key.per_day)
            connection.execute(insert(jobs).values(**_row(job)))
        return job, True

    def known(self, owner: str, idempotency: str, digest: str) -> Job | None:
        """Return the job that was made with an idempotency key.

        Args:
            digest: of the request.

        Raises:
            ApiError: the key was used for another request (422).
        """
        with self.reading() as connection:
            return self._known(connection, owner, idempotency, digest)

    def get(self, job_id: str, owner: str) -> Job | None:
        """Return a job that its owner can see."""
        with self.reading() as connection:
            found = connection.execute(select(jobs).where(jobs.c.id == job_id, *_seen_by(owner))).first()
        return _job(found) if found else None

    def page(self, owner: str, after: str | None, limit: int, *, ascending: bool) -> tuple[list[Job], bool]:
        """Return a page of an owner's jobs, and whether there are more.

        Raises:
            ApiError: `after` names no job of the owner.
        """
        with self.reading() as connection:
            wanted = select(jobs).where(*_seen_by(owner))
            if after is not None:
                seq = connection.scalar(select(jobs.c.seq).where(jobs.c.id == after, *_seen_by(owner)))
                if seq is None:
                    raise ApiError(400, "invalid_cursor", f"after: there is no video {after}", "after")
                wanted = wanted.where(jobs.c.seq > seq if ascending else jobs.c.seq < seq)
            order = jobs.c.seq.asc() if ascending else jobs.c.seq.desc()
            found = [_job(row) for row in connection.execute(wanted.order_by(order).limit(limit + 1))]
        return found[:limit], len(found) > limit

    def delete(self, job_id: str, owner: str) -> Job | None:
        """Take a job from its owner's sight; returns it as it was, or None where there is none.

        One that is computed keeps its row until its process has let go of it (`drop`).
        """
        with self.writing() as connection:
            wanted = select(jobs).where(jobs.c.id == job_id, *_seen_by(owner)).with_for_update()
            if (row := connection.execute(wanted).first()) is None:
                return None
            # Expired at once: whatever of it a process leaves behind goes with the next sweep.
            gone = {"deleted": True, "expires": 0.0, "idempotency": None}
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(**gone))
        return _job(row)

    def place(self, job: Job) -> int:
        """Return how many jobs of its class, or of a class before it, came before a job that waits."""
        with self.reading() as connection:
            waits = or_(jobs.c.state == State.QUEUED, and_(jobs.c.state == State.IN_PROGRESS, jobs.c.began.is_(False)))
            return self._count(connection, waits, jobs.c.priority <= job.priority, jobs.c.seq < job.seq)

    # ------------------------------------------------------------------ workers

    def claim(self, worker: str, now: float, lease_s: float, most_priority: int) -> Job | None:
        """Take the next job: by class, then by share of its owner, then by age.

        Args:
            worker: who takes it.
            lease_s: for how long, until `renew` prolongs it.
            most_priority: the last class that may be taken.
        """
        waiting = (jobs.c.state == State.QUEUED, jobs.c.deleted.is_(False), jobs.c.available <= now)
        with self.writing() as connection:
            busy: dict[str, int] = dict(self._counts(connection, jobs.c.owner, jobs.c.state == State.IN_PROGRESS))
            heads = connection.execute(
                select(jobs.c.priority, jobs.c.owner, func.min(jobs.c.seq))
                .where(*waiting, jobs.c.priority <= most_priority)
                .group_by(jobs.c.priority, jobs.c.owner)
            ).all()
            for priority, owner, _ in sorted(
                heads, key=lambda head: (head[0], busy.get(head[1], 0) / self._share_of(head[1]), head[2])
            ):
                wanted = select(jobs).where(*waiting, jobs.c.priority == priority, jobs.c.owner == owner)
                # On PostgreSQL another replica may be at the same row: take the one after it.
                oldest = wanted.order_by(jobs.c.seq).limit(1).with_for_update(skip_locked=True)
                if (row := connection.execute(oldest).first()) is None:
                    continue
                job = replace(
                    _job(row),
                    state=State.IN_PROGRESS,
                    worker=worker,
                    lease=now + lease_s,
                    attempts=row.attempts + 1,
                )
                values = {"state": job.state, "worker": worker, "lease": job.lease, "attempts": job.attempts}
                connection.execute(update(jobs).where(jobs.c.id == job.id).values(**values))
                return job
        return None

    def waiting(self, now: float) -> tuple[int, ...]:
        """Return the classes of which jobs could be claimed."""
        wanted = select(jobs.c.priority).where(
            jobs.c.state == State.QUEUED, jobs.c.deleted.is_(False), jobs.c.available <= now
        )
        with self.reading() as connection:
            return tuple(sorted(connection.scalars(wanted.distinct())))

    def start(self, job: Job) -> None:
        """Write down that the upstream computes a job."""
        with self.writing() as connection:
            connection.execute(update(jobs).where(*_held(job)).values(began=True))

    def renew(self, worker: str, lease: float, progress: Mapping[str, int | None]) -> tuple[set[str], set[str]]:
        """Prolong jobs that a worker has and knows of, and write down how far they are.

        A job that the database gives to a worker which never heard of it, because the answer got lost, is not among
        them: its lease lapses.

        Args:
            progress: per cent, by job; None: it has not begun.

        Returns:
            Ids of the jobs that are still the worker's, and of those among them that were deleted.
        """
        mine = (jobs.c.worker == worker, jobs.c.state == State.IN_PROGRESS)
        rows: list[Any] = []
        with self.writing() as connection:
            for chunk in _chunks(list(progress), 1000):
                known = (*mine, jobs.c.id.in_(chunk))
                connection.execute(update(jobs).where(*known).values(lease=lease))
                rows += connection.execute(select(jobs.c.id, jobs.c.deleted).where(*known)).all()
            for job_id, done in progress.items():
                if done is not None:
                    values = {"progress": done, "began": True}
                    connection.execute(update(jobs).where(*mine, jobs.c.id == job_id).values(**values))
        return {row.id for row in rows}, {row.id for row in rows if row.deleted}

    def release(self, job: Job, available: float, *, counts: bool) -> None:
        """Give a job back to the queue.

        Args:
            available: when it may be claimed again.
            counts: whether a computation may have been begun.
        """
        values: dict[str, Any] = {"state": State.QUEUED, "worker": None, "lease": None, "progress": 0, "began": False}
        values |= {"available": available, "attempts": job.attempts - (0 if counts else 1)}
        with self.writing() as connection:
            connection.execute(update(jobs).where(*_held(job)).values(**values))

    def finish(
        self,
        job: Job,
        now: float,
        expires: float,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> Job | None:
        """End a job with a result or an error, and put its webhook into the outbox, in one transaction.

        Returns:
            The job; None where it is no longer the worker's: another one has it, or it was deleted.
        """
        state = State.FAILED if error else State.COMPLETED
        progress = job.progress if error else 100
        done = replace(job, state=state, ended=now, expires=expires, result=result, error=error, progress=progress)
        done = replace(done, worker=None, lease=None, deleted=False)
        values = {name: getattr(done, name) for name in ("state", "ended", "expires", "result", "error", "progress")}
        with self.writing() as connection:
            mine = update(jobs).where(*_held(job), jobs.c.deleted.is_(False))
            if connection.execute(mine.values(worker=None, lease=None, **values)).rowcount == 0:
                return None
            if job.webhook is not None:
                connection.execute(insert(deliveries).values(**_message(done, job.webhook, now)))
        return done

    def lapsed(self, now: float, worker: str, lease: float) -> list[Job]:
        """Take over the jobs of workers that are heard of no more."""
        with self.writing() as connection:
            wanted = select(jobs).where(jobs.c.state == State.IN_PROGRESS, jobs.c.lease < now)
            found = [_job(row) for row in connection.execute(wanted.with_for_update(skip_locked=True))]
            for job in found:
                connection.execute(update(jobs).where(jobs.c.id == job.id).values(worker=worker, lease=lease))
        return [replace(job, worker=worker, lease=lease) for job in found]

    def lapse_all(self) -> None:
        """Say that no worker is alive: for a database that one process has to itself, when it starts."""
        with self.writing() as connection:
            connection.execute(update(jobs).where(jobs.c.state == State.IN_PROGRESS).values(lease=0.0))

    # ------------------------------------------------------------------ the end of all things

    def expired(self, now: float, limit: int = 100) -> list[Job]:
        """Return jobs whose files and rows are to go; none that a worker has."""
        wanted = select(jobs).where(jobs.c.expires <= now, jobs.c.state != State.IN_PROGRESS).limit(limit)
        with self.reading() as connection:
            return [_job(row) for row in connection.execute(wanted)]

    def drop(self, job_ids: Sequence[str]) -> None:
        """Remove rows; their files are gone."""
        with self.writing() as connection:
            connection.execute(delete(jobs).where(jobs.c.id.in_(job_ids)))

    def unknown(self, job_ids: Sequence[str]) -> set[str]:
        """Return those ids of which there is no row."""
        left = set(job_ids)
        with self.reading() as connection:
            for chunk in _chunks(job_ids, 1000):
                left -= set(connection.scalars(select(jobs.c.id).where(jobs.c.id.in_(chunk))))
        return left

    # ------------------------------------------------------------------ webhooks

    def due(self, now: float, until: float, limit: int) -> list[Delivery]:
        """Take webhooks that are to be sent; they come up again at `until` unless they are `sent`."""
        with self.writing() as connection:
            wanted = select(deliveries).where(deliveries.c.due <= now).order_by(deliveries.c.due).limit(limit)
            found = connection.execute(wanted.with_for_update(skip_locked=True)).all()
            ids = [row.id for row in found]
            if ids:
                later = update(deliveries).where(deliveries.c.id.in_(ids))
                connection.execute(later.values(due=until, attempts=deliveries.c.attempts + 1))
        return [Delivery(**row._asdict()) for row in found]

    def sent(self, delivery_id: str) -> None:
        """Forget a webhook: it has arrived, or is given up."""
        with self.writing() as connection:
            connection.execute(delete(deliveries).where(deliveries.c.id == delivery_id))

    def postpone(self, delivery_id: str, due: float, attempts: int) -> None:
        """Send a webhook then, after so many attempts."""
        later = update(deliveries).where(deliveries.c.id == delivery_id).values(due=due, attempts=attempts)
        with self.writing() as connection:
            connection.execute(later)

    # ------------------------------------------------------------------ what metrics show

    def totals(self) -> dict[tuple[str, int], int]:
        """Return how many jobs there are, by what clients see of their state, and by class."""
        waits = and_(jobs.c.state == State.IN_PROGRESS, jobs.c.began.is_(False))
        status = case((waits, literal_column("'queued'")), else_=jobs.c.state).label("status")
        wanted = select(status, jobs.c.priority, func.count()).where(jobs.c.deleted.is_(False))
        with self.reading() as connection:
            return {(row[0], row[1]): row[2] for row in connection.execute(wanted.group_by(status, jobs.c.priority))}

    def webhooks_left(self) -> int:
        with self.reading() as connection:
            return connection.scalar(select(func.count()).select_from(deliveries)) or 0

    # ------------------------------------------------------------------

    def _known(self, connection: Connection, owner: str, idempotency: str, digest: str | None) -> Job | None:
        same = (jobs.c.owner == owner, jobs.c.idempotency == idempotency)
        if (row := connection.execute(select(jobs).where(*same)).first()) is None:
            return None
        if row.digest != digest:
            message = "Idempotency-Key: it was used for another request; take a new one for each"
            raise ApiError(422, "idempotency_key_reused", message, "Idempotency-Key")
        return _job(row)

    def _count_submission(self, connection: Connection, job: Job, key: Key, most: int) -> None:
        """Count a job against its owner's quota: whether it is deleted or expires, it was submitted."""
        mine, day_ago = submissions.c.owner == job.owner, job.created - _DAY_S
        connection.execute(delete(submissions).where(mine, submissions.c.at <= day_ago))
        newest = select(submissions.c.at).where(mine).order_by(submissions.c.at.desc()).limit(most)
        since = connection.scalars(newest).all()
        if len(since) >= most:
            message = f"{key.name} has submitted its limit of {most} jobs a day"
            raise ApiError(429, "quota_exceeded", message, None, since[-1] - day_ago)
        connection.execute(insert(submissions).values(owner=job.owner, at=job.created))

    def _count(self, connection: Connection, *where: Any) -> int:
        wanted = select(func.count()).select_from(jobs).where(jobs.c.deleted.is_(False), *where)
        return connection.scalar(wanted) or 0

    def _counts(self, connection: Connection, by: Any, *where: Any) -> list[tuple[str, int]]:
        return [(row[0], row[1]) for row in connection.execute(select(by, func.count()).where(*where).group_by(by))]


def _seen_by(owner: str) -> tuple[Any, ...]:
    return jobs.c.owner == owner, jobs.c.deleted.is_(False)


def _chunks(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _held(job: Job) -> tuple[Any, ...]:
    """Match a job that is still this worker's, in this attempt."""
    mine = (jobs.c.id == job.id, jobs.c.state == State.IN_PROGRESS)
    return *mine, jobs.c.worker == job.worker, jobs.c.attempts == job.attempts


def _row(job: Job) -> dict[str, Any]:
    return asdict(job) | {"fields": dict(job.fields), "pictures": list(job.pictures)}


def _job(row: Row[Any]) -> Job:
    values = row._asdict()
    return Job(**values | {"pictures": tuple(values["pictures"])})


def _message(job: Job, url: str, now: float) -> dict[str, Any]:
    """Return the webhook that tells of a job's end, as a row."""
    message_id, kind = new_id("evt"), f"video.{job.state}"
    body = {"id": message_id, "object": "event", "type": kind, "created_at": int(now), "data": job.to_api()}
    written = json.dumps(body, separators=(",", ":"))
    return {"id": message_id, "owner": job.owner, "url": url, "kind": kind, "body": written, "attempts": 0, "due": now}
