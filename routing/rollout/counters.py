"""What became of the jobs of each version, as dispatchers count it on their page `/jobs`, or a Prometheus has it.

Only growth since the first reading counts, and a dispatcher that has started anew takes nothing back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal, Protocol

import httpx

from ..errors import RoutingError
from ..fleet import Fleet
from ..metrics.pages import read_samples

Version = Literal["stable", "candidate"]
VERSIONS: tuple[Version, ...] = ("stable", "candidate")
PATH = "/jobs"

JOBS = "stillmotion_dispatcher_jobs_total"
BUCKETS = "stillmotion_dispatcher_job_seconds_bucket"
_LIMIT_S = 5.0

Key = tuple[str, frozenset[tuple[str, str]]]
"""Name and labels of a series."""
Page = Mapping[Key, float]


class Source(Protocol):
    """Where counters are read."""

    def read(self) -> Mapping[str, Page]:
        """Return the page of each dispatcher that answers, by its name.

        Raises:
            RoutingError: none does.
        """


@dataclass(frozen=True)
class Pages:
    """The dispatchers' own pages.

    Attributes:
        urls: of their admin addresses, such as `http://10.1.0.8:9902`.
    """

    urls: Sequence[str]

    @classmethod
    def of(cls, fleet: Fleet) -> Pages:
        """Return those of a fleet, where its file says that they are."""
        given = fleet.metrics.pages
        if given:
            return cls([url for pages in given.values() for url in pages.dispatchers])
        return cls([f"http://{one.admin}" for place in fleet.places().values() for one in place.dispatchers])

    def read(self) -> Mapping[str, Page]:
        """Return the pages; see `Source`."""
        found, problems = {}, []
        with httpx.Client(timeout=_LIMIT_S, trust_env=False) as client:
            for url in self.urls:
                try:
                    answer = client.get(url.rstrip("/") + PATH)
                    answer.raise_for_status()
                    found[url] = {_key(*one[:2]): one[2] for one in read_samples(answer.text, {JOBS, BUCKETS})}
                except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                    problems.append(f"{url}{PATH}: {str(error) or type(error).__name__}")
        if not found:
            raise RoutingError(f"no dispatcher's counters can be read; {problems[0] if problems else 'none is named'}")
        return found


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that scrapes these pages.

    Attributes:
        url: its own.
        selector: labels that narrow the series down, such as `region="us-east"`.
    """

    url: str
    selector: str = ""

    def read(self) -> Mapping[str, Page]:
        """Return the pages; see `Source`."""
        query = f'{{__name__=~"{JOBS}|{BUCKETS}"{"," if self.selector else ""}{self.selector}}}'
        try:
            with httpx.Client(timeout=_LIMIT_S, trust_env=False) as client:
                answer = client.get(f"{self.url.rstrip('/')}/api/v1/query", params={"query": query})
                content = answer.json()
            if content.get("status") != "success":
                raise RoutingError(f"{self.url} refuses the question: {content.get('error', answer.status_code)}")
            found: dict[str, dict[Key, float]] = defaultdict(dict)
            for one in content["data"]["result"]:
                labels = dict(one["metric"])
                found[labels.pop("instance", "?")][_key(labels.pop("__name__"), labels)] = float(one["value"][1])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RoutingError(
                f"{self.url}: no answer of a Prometheus ({str(error) or type(error).__name__})"
            ) from None
        return found


@dataclass(frozen=True)
class Tally:
    """What became of the jobs of one version.

    Attributes:
        answers: {status: answers of servers, and jobs whose answer was lost (502, 504)}.
        refused: jobs that servers refused, or that found none.
        within: {seconds: jobs that took a server no longer}, of those that were timed.
        timed: jobs that were timed: those with a video, and no streams.
        models: names of the model, as servers give them.
    """

    answers: Mapping[int, int] = field(default_factory=dict)
    refused: int = 0
    within: Mapping[float, int] = field(default_factory=dict)
    timed: int = 0
    models: frozenset[str] = frozenset()

    @property
    def jobs(self) -> int:
        """All that were begun."""
        return sum(self.answers.values())

    @property
    def failed(self) -> int:
        """Those that ended with an error of the server."""
        return sum(count for status, count in self.answers.items() if status >= 500)

    @property
    def rejected(self) -> int:
        """Those that were called malformed."""
        return sum(count for status, count in self.answers.items() if 400 <= status < 500)

    def slower(self, seconds: float) -> int:
        """Return how many took longer; as exactly as the buckets allow, in favour of none."""
        bound = min((one for one in self.within if one >= seconds), default=None)
        return 0 if bound is None else self.timed - self.within[bound]


@dataclass
class Growth:
    """All that counters have gained since the first page of each dispatcher."""

    _last: dict[str, Page] = field(default_factory=dict)
    _gained: dict[Key, float] = field(default_factory=lambda: defaultdict(float))

    def take(self, pages: Mapping[str, Page]) -> None:
        """Add what was gained since the last reading."""
        for name, page in pages.items():
            before = self._last.get(name)
            self._last[name] = page
            if before is None:
                continue
            for key, value in page.items():
                known = before.get(key, 0.0)
                # A counter that fell has started anew, and all of it is new.
                self._gained[key] += value - known if value >= known else value

    def tally(self, version: Version) -> Tally:
        """Return what became of the jobs of a version."""
        answers: dict[int, int] = defaultdict(int)
        within: dict[float, int] = defaultdict(int)
        refused, models = 0, set()
        for (name, labels), amount in self._gained.items():
            known = dict(labels)
            if known.get("version") != version:
                continue
            if name == BUCKETS:  # those that have not grown as well
                within[float(known.get("le", "inf"))] += round(amount)
                continue
            if not amount:
                continue
            models.add(known.get("model", ""))
            status, by_server = int(known.get("code", "0")), known.get("by") == "server"
            if status in {429, 503}:
                # A line that is full is the region's, and no fault of a version.
                refused += round(amount) if by_server or status == 503 else 0
            else:
                answers[status] += round(amount)
        timed = within.pop(inf, 0)
        return Tally(dict(answers), refused, dict(within), timed, frozenset(models - {""}))


def _key(name: str, labels: Mapping[str, str]) -> Key:
    own: Iterable[str] = ("version", "model", "code", "by", "le")
    return name, frozenset((one, labels[one]) for one in own if one in labels)
