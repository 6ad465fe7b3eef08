"""What objectives are judged by: the requests of a run, the plan that the fleet's policies would make, and chance.

Each share is judged with the interval that so few requests leave it in (Wilson): an objective has failed when all of
that interval is on the wrong side of the limit. Three standard deviations of chance: of seven hundred objectives that
are just met, one fails. What has hardly any requests is not judged, and never passed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from laboratory.queueing import wilson
from laboratory.simulate.scenario import Failure
from routing.fleet import Fleet
from routing.load import Load
from routing.planner import plan

from .roles import Roles
from .tally import Tally
from .timed import Timed

Verdict = Literal["passed", "failed", "not judged"]
LEAST = 30
"""With fewer requests nothing is judged."""


@dataclass(frozen=True)
class Observed:
    """What the control loop said while the test ran.

    Attributes:
        tables: that it published; None: nobody could ask it.
        silent_share: of the times that it was asked, without an answer.
    """

    tables: int | None = None
    silent_share: float = 0.0


@dataclass(frozen=True)
class Finding:
    """An objective, judged.

    Attributes:
        kind: of objective.
        text: what was expected, for people.
        verdict: what came of it.
        measured, limit: in the unit of the objective.
        low, high: what the measured value may as well have been.
        requests: that it is based on.
        why: what was found, or why it is not judged.
        needed: whether a run in which this is not judged tells too little to pass.
    """

    kind: str
    text: str
    verdict: Verdict
    measured: float | None = None
    limit: float | None = None
    low: float | None = None
    high: float | None = None
    requests: int = 0
    why: str = ""
    needed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: value for name, value in self.__dict__.items() if name != "needed"}


@dataclass(frozen=True)
class Run:
    """What came of a run.

    Attributes:
        tally: of its requests.
        fleet: as its file says that it should behave.
        roles, timed: of the scenario, for this fleet.
        duration_s: of the scenario, in its own seconds.
        failures: of the scenario, in its own seconds, with regions of the fleet.
        observed: see `Observed`.
    """

    tally: Tally
    fleet: Fleet
    roles: Roles
    timed: Timed
    duration_s: float
    failures: Sequence[Failure] = ()
    observed: Observed = field(default_factory=Observed)

    def window(self, from_s: float, until_s: float | None) -> tuple[float, float]:
        """Of the scenario's seconds, in those of the run."""
        return self.timed(from_s), self.timed(self.duration_s if until_s is None else until_s)

    def planned(self, from_s: float, until_s: float | None) -> Mapping[str, Mapping[str, float]]:
        """Shares that the planner gives for the arrivals of a window."""
        begin, end = self.window(from_s, until_s)
        seconds = max(self.tally.bin_s, end - begin)
        demand = {name: count / seconds for name, count in self.tally.demand(begin, end).items()}
        load = Load(demand_rps=Load.of(self.fleet, demand).demand_rps, capacity_rps=self._capacity(from_s, until_s))
        return plan(self.fleet, load, generated_at=datetime.now(UTC)).shares

    def _capacity(self, from_s: float, until_s: float | None) -> dict[str, float]:
        found = {name: self.fleet.capacity_rps(name) for name in self.fleet.names}
        end = self.duration_s if until_s is None else until_s
        for one in self.failures:
            if one.at_s <= from_s and (one.until_s or self.duration_s) >= end:
                found[one.region] = found[one.region] / one.slowness if one.slowness != 1.0 else 0.0
        return found

    def first_attempts(self, source: str, from_s: float, until_s: float | None) -> Counter[str]:
        """Regions that answered the requests of a source whose first attempt was taken: where its edge sends them."""
        found: Counter[str] = Counter()
        for region, served, cell in self.tally.between(*self.window(from_s, until_s)):
            if region == source and served and cell.attempts[1]:
                found[served] += cell.attempts[1]
        return found


def judge_share(
    kind: str, text: str, count: int, of: int, *, at_most: float = 1.0, at_least: float = 0.0, sigma: float = 3.0
) -> Finding:
    """Judge a share by its interval."""
    limit = at_most if at_most < 1.0 else at_least
    if of < LEAST:
        return Finding(
            kind, text, "not judged", None, limit, requests=of, why=f"{of} requests are too few to tell", needed=True
        )
    low, high = wilson(count, of, sigma)
    verdict: Verdict = "failed" if low > at_most or high < at_least else "passed"
    return Finding(
        kind,
        text,
        verdict,
        count / of,
        limit,
        low,
        high,
        of,
        f"{count} of {of}, {count / of:.1%} ({low:.1%} to {high:.1%})",
    )


def nobody(kind: str, text: str) -> Finding:
    """The fleet has no such region."""
    return Finding(kind, text, "not judged", why="no region of this fleet has the role")


def worst(findings: Sequence[Finding]) -> Finding:
    """The one that counts, of several about one objective."""
    order = {"failed": 0, "not judged": 1, "passed": 2}
    return min(findings, key=lambda one: (order[one.verdict], not one.needed))


def about(one: Finding, what: str) -> Finding:
    """A finding that says what it is about."""
    return replace(one, why=f"{what}: {one.why}")
