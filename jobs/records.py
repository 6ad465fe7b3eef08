"""What is kept of a job: a row in the database, a value in the program, and the `video` that clients see."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from .settings import PRIORITIES


class State(StrEnum):
    """Of a job, as OpenAI's API names them::

        QUEUED --claim--> IN_PROGRESS --finish--> COMPLETED, FAILED --expire--> gone
           ^                   |
           +----- release -----+   refused by the upstream, lost with a server, or its process died

    One that was sent upstream and has not begun there is IN_PROGRESS without `began`, and clients see it as queued: it
    may come back, and they should not see it go and come with each attempt.

    A job that is deleted while it is IN_PROGRESS has `deleted` set: clients see it no more, and its row goes as soon
    as its computation has been told to stop.
    """

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("seq", BigInteger, nullable=False),  # nanoseconds of its creation: its place in the queue and in lists
    Column("owner", String(64), nullable=False),
    Column("priority", Integer, nullable=False),  # index into PRIORITIES
    Column("state", String(16), nullable=False),
    Column("began", Boolean, nullable=False),  # whether the upstream computes it, or has done so
    Column("progress", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("ended", Float),
    Column("expires", Float),
    Column("available", Float, nullable=False),  # not to be claimed before
    Column("model", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("seconds", Text, nullable=False),
    Column("size", Text, nullable=False),
    Column("fields", JSON, nullable=False),  # further fields of the form that the upstream gets
    Column("pictures", JSON, nullable=False),  # names of its pictures' fields
    Column("remixed_from", String(64)),
    Column("idempotency", String(255)),
    Column("digest", String(64)),  # of the request, for a second use of its idempotency key
    Column("webhook", Text),
    Column("attempts", Integer, nullable=False),
    Column("worker", String(64)),  # process that has it
    Column("lease", Float),  # until when, if nothing more is heard of it
    Column("deleted", Boolean, nullable=False),
    Column("error", JSON),
    Column("result", JSON),
    UniqueConstraint("owner", "idempotency", name="jobs_idempotency"),
    Index("jobs_queue", "state", "priority", "owner", "seq"),
    Index("jobs_list", "owner", "seq"),
    Index("jobs_expiry", "expires"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("url", Text, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("body", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due", Float, nullable=False),
    Index("deliveries_due", "due"),
)

submissions = Table(  # of owners with a quota; a job may be gone long before its day is over
    "submissions",
    metadata,
    Column("owner", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Index("submissions_owner", "owner", "at"),
)

about = Table(
    "about",
    metadata,
    Column("version", Integer, nullable=False),
    Column("name", String(64), nullable=False),  # of this database, drawn when it was made
)

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Job:
    """A row of `jobs`; the attributes are its columns."""

    id: str
    seq: int
    owner: str
    model: str
    prompt: str
    seconds: str
    size: str
    created: float
    priority: int = 0
    state: str = State.QUEUED
    began: bool = False
    progress: int = 0
    ended: float | None = None
    expires: float | None = None
    available: float = 0.0
    fields: Mapping[str, str] = field(default_factory=dict)
    pictures: tuple[str, ...] = ("image",)
    remixed_from: str | None = None
    idempotency: str | None = None
    digest: str | None = None
    webhook: str | None = None
    attempts: int = 0
    worker: str | None = None
    lease: float | None = None
    deleted: bool = False
    error: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None

    @property
    def status(self) -> str:
        """What clients see of `state`."""
        return State.QUEUED if self.state == State.IN_PROGRESS and not self.began else self.state

    def to_api(self) -> dict[str, Any]:
        """Return the video as OpenAI's API has it, and our own fields beside."""
        return {
            "id": self.id,
            "object": "video",
            "model": self.model,
            "status": self.status,
            "progress": self.progress,
            "created_at": int(self.created),
            "completed_at": math.ceil(self.ended) if self.ended and self.state == State.COMPLETED else None,
            "expires_at": int(self.expires) if self.expires else None,
            "error": self.error,
            "prompt": self.prompt,
            "remixed_from_video_id": self.remixed_from,
            "seconds": self.seconds,
            "size": self.size,
            "priority": PRIORITIES[self.priority],
            "settings": dict(self.fields),
            "result": self.result,
        }


@dataclass(frozen=True)
class Delivery:
    """A webhook that is to be sent."""

    id: str
    owner: str
    url: str
    kind: str
    body: str
    attempts: int = 0
    due: float = 0.0


VIDEO_ID = re.compile(r"video_[0-9a-f]{32}")


def new_id(kind: str) -> str:
    """Return an id that nobody can guess."""
    return f"{kind}_{secrets.token_hex(16)}"
