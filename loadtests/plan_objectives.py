"""What a scenario can expect by the plan that the fleet's file would make for the same demand."""

from __future__ import annotations

from collections.abc import Iterator

from routing.schema import Count, Number, Share

from .findings import Finding, Run, about, judge_share, nobody, worst
from .objectives import Objective

_WORTH_IT = 0.05  # shares below are lost among retries


class Leaves(Objective):
    """Overflow: requests that others answer, as a share of what the plan sends away.

    Of all that have an animation, since the first attempts of a region that is full find no place.

    Attributes:
        at_least: of the planned share.
        at_most: of the planned share.
    """

    at_least: Number = 0.5
    at_most: Number = 1.5

    def text(self) -> str:
        how = f"{self.at_least:g} to {self.at_most:g} times as many requests{self.whose()}"
        return f"{how} leave home as the fleet file plans{self.when()}"

    def judge(self, run: Run) -> Finding:
        sources = self.sources(run)
        if not sources:
            return nobody(self.kind, self.text())
        window = run.window(self.from_s, self.until_s)
        planned, found = run.planned(self.from_s, self.until_s), []
        for source in sorted(sources):
            good = run.tally.select(*window, frozenset({source}), lambda _, to: bool(to)).count
            home = run.tally.select(*window, frozenset({source}), lambda user, to: user == to).count
            share = 1 - planned[source].get(source, 0.0)
            if share < _WORTH_IT:
                why = f"the plan keeps {1 - share:.0%} of {source}'s requests at home"
                found.append(Finding(self.kind, self.text(), "not judged", why=why))
                continue
            one = _both_sides(self, good - home, good, share)
            found.append(about(one, f"{source}, {share:.1%} planned"))
        return worst(found)


class FollowsPlan(Objective):
    """First attempts that are taken go where the plan of the fleet file sends them.

    Attributes:
        within: difference of a share that is allowed.
    """

    within: Share = 0.15

    def text(self) -> str:
        return f"requests{self.whose()} go where the fleet file plans, to {self.within:.0%}{self.when()}"

    def judge(self, run: Run) -> Finding:
        if not self.sources(run):
            return nobody(self.kind, self.text())
        return worst(list(self._each(run)))

    def _each(self, run: Run) -> Iterator[Finding]:
        planned = run.planned(self.from_s, self.until_s)
        for source in sorted(self.sources(run)):
            first = run.first_attempts(source, self.from_s, self.until_s)
            for to in run.fleet.names:
                share = planned[source].get(to, 0.0)
                low, high = max(0.0, share - self.within), min(1.0, share + self.within)
                one = judge_share(
                    self.kind, self.text(), first[to], first.total(), at_least=low, at_most=high, sigma=self.sigma
                )
                yield about(one, f"{source} to {to}, {share:.1%} planned")


class RingOrder(Objective):
    """Near before far: first attempts beyond a ring stay with what the plan sends there.

    Attributes:
        beyond: ring; None: the one that the lowest threshold unlocks.
        more_than_planned: share of the requests that may go beyond it all the same.
    """

    beyond: Count | None = None
    more_than_planned: Share = 0.03

    def text(self) -> str:
        ring = f"ring {self.beyond}" if self.beyond is not None else "the ring of the lowest threshold"
        more = f"at most {self.more_than_planned:.1%} more of the requests{self.whose()}"
        return f"{more} go beyond {ring} than the fleet file plans{self.when()}"

    def judge(self, run: Run) -> Finding:
        sources = self.sources(run)
        if not sources:
            return nobody(self.kind, self.text())
        ring = run.fleet.thresholds[0].ring if self.beyond is None else self.beyond
        planned, found = run.planned(self.from_s, self.until_s), []
        for source in sorted(sources):
            far = [to for to in run.fleet.names if (at := run.fleet.ring(source, to)) is None or at > ring]
            if not far:
                continue
            first = run.first_attempts(source, self.from_s, self.until_s)
            share = sum(planned[source].get(to, 0.0) for to in far)
            most = min(1.0, share + self.more_than_planned)
            count = sum(first[to] for to in far)
            one = judge_share(self.kind, self.text(), count, first.total(), at_most=most, sigma=self.sigma)
            found.append(about(one, f"{source}, {share:.1%} planned"))
        return worst(found) if found else nobody(self.kind, self.text())


def _both_sides(objective: Leaves, count: int, of: int, planned: float) -> Finding:
    low, high = objective.at_least * planned, min(1.0, objective.at_most * planned)
    return judge_share(objective.kind, objective.text(), count, of, at_least=low, at_most=high, sigma=objective.sigma)
