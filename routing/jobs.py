"""What the service behind a dispatcher takes: the section `jobs` of `fleet.yaml`, and the line its jobs wait in.

Any HTTP service that works on one job at a time fits. The defaults are those of this project's own service.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from .schema import Items, Positive, Strict, wrong

_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
LARGEST_BODY = 2**30


def _path(text: str) -> str:
    # It becomes part of the proxies' configuration files, where spaces and quotes have a meaning.
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", text):
        raise wrong("", f"{text} is no path of letters, digits and . _ ~ -, such as /v1/videos")
    return text


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `17MiB`; units are KiB, MiB and GiB.

    Raises:
        ValueError: the text is no such size.
    """
    found = re.fullmatch(r"(\d{1,12}) ?(|KiB|MiB|GiB)", text)
    if not found:
        raise ValueError(text)
    return int(found[1]) * _UNITS[found[2]]


def _size(text: str) -> str:
    try:
        size = parse_size(text)
    except ValueError:
        raise wrong("", f"{text} is no size, such as 17MiB or 512KiB") from None
    if not 1 <= size <= LARGEST_BODY:
        raise wrong("", f"{text} is not between 1 byte and {LARGEST_BODY // 2**30}GiB")
    return text


Path = Annotated[str, AfterValidator(_path)]
"""Path of a URL, without query."""
Size = Annotated[str, AfterValidator(_size)]
"""Bytes with a unit, as text."""


class Jobs(Strict):
    """The service's jobs.

    Attributes:
        paths: that take a GPU, by POST. All other requests are pages, which a server answers while it computes.
        pages: paths that users may get beside the jobs; what is below them belongs to them. None: only jobs.
        ready: path that answers 200 while a server can take jobs, busy or not.
        deadline_s: from a server's first byte of a job to the last byte of its answer. A server's own deadline
            should be shorter: this ends a job whose server hangs.
        body_limit: largest body of a request, such as `17MiB`.
    """

    paths: Annotated[tuple[Path, ...], Items, Field(min_length=1)] = ("/animate", "/animate/stream")
    pages: Annotated[tuple[Path, ...], Items] = ("/docs.json", "/schema.json", "/ui")
    ready: Path = "/readyz"
    deadline_s: Positive = 200.0
    body_limit: Size = "17MiB"

    @property
    def body_bytes(self) -> int:
        """`body_limit` in bytes."""
        return parse_size(self.body_limit)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for i, path in enumerate(self.paths):
            if path in self.paths[:i]:
                raise wrong(f"paths.{i}", f"{path} is there twice")
        return self


class Queue(Strict):
    """The line of a region, which its dispatcher keeps: the oldest job of the higher class is next.

    Attributes:
        max_wait_s: a job that would be expected to wait longer, or has waited for so long, is refused with 429 and a
            Retry-After; the edge then tries elsewhere. None: 1.75 times what a job takes (`service_time_s`).
        spill_max_wait_s: `max_wait_s` of a job that another region's line has refused. None: half of what a job
            takes. A job that spills over finds room where there is some, and costs the users of no other full region
            their place: if both bounds were the same, each refusal would cause another in the next region.
        batch_clients: names of clients (of the API keys) whose jobs wait behind everybody else's. Any client may ask
            for that by the header `x-job-class: batch`.
        batch_max_wait_s: `max_wait_s` of the class batch; None: four times that where there are `batch_clients`, else
            the same. The longest bound is also the longest that any job waits in the line, however it was let in.
    """

    max_wait_s: Positive | None = None
    spill_max_wait_s: Positive | None = None
    batch_clients: Annotated[tuple[str, ...], Items] = ()
    batch_max_wait_s: Positive | None = None

    def bounds_s(self, service_time_s: float) -> tuple[float, float]:
        """Return the longest expected wait of interactive jobs and of batch jobs, in seconds."""
        interactive = self.max_wait_s or 1.75 * service_time_s
        return interactive, self.batch_max_wait_s or interactive * (4 if self.batch_clients else 1)

    def spill_bounds_s(self, service_time_s: float) -> tuple[float, float]:
        """Return `bounds_s` of jobs that another region has refused: those of batch are shorter in proportion."""
        interactive, batch = self.bounds_s(service_time_s)
        spill = min(interactive, self.spill_max_wait_s or 0.5 * service_time_s)
        return spill, batch * spill / interactive


class RateLimit(Strict):
    """How many jobs one client may send to one edge: a token bucket for each API key.

    Attributes:
        rps: tokens that are added per second. An edge counts for itself: with n edges a client has n times as much.
        burst: size of the bucket.
        clients: `rps` of clients that have another, by their name; the bucket grows in proportion.
    """

    rps: Positive
    burst: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    clients: Mapping[str, Positive] = {}
