"""What a scenario can expect of the requests themselves: failures, waits, attempts, recovery."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from routing.errors import InputError
from routing.schema import Count, Number, Positive, RegionName, Share, Strict

from .findings import Finding, Run, Verdict, about, judge_share, nobody, worst
from .roles import ALL, regions
from .tally import Cell


class Objective(Strict):
    """What is expected of the requests of some regions' users, in a part of a run.

    Attributes:
        kind: which objective; see its class.
        regions: role or region of the users; `all`: everyone.
        from_s, until_s: requests that were due then, in seconds of the scenario; without `until_s`, to the end.
        sigma: standard deviations of chance that it allows for.
    """

    kind: str
    regions: RegionName = ALL
    from_s: Number = 0.0
    until_s: Positive | None = None
    sigma: Annotated[Positive, Field(le=10)] = 3.0

    @abstractmethod
    def text(self) -> str:
        """What is expected, for people."""

    @abstractmethod
    def judge(self, run: Run) -> Finding:
        """What came of it."""

    def check(self, duration_s: float, key: str) -> None:
        """See that it is of a scenario.

        Raises:
            InputError: with the key.
        """
        if self.from_s >= min(duration_s, self.until_s or duration_s):
            raise InputError(f"{self.from_s:g} is not before the end", key=f"{key}.from_s")
        if self.until_s is not None and self.until_s > duration_s:
            raise InputError(f"{self.until_s:g} is after the end ({duration_s:g})", key=f"{key}.until_s")

    def sources(self, run: Run) -> frozenset[str]:
        """Regions that are meant."""
        return frozenset(regions(run.roles, self.regions, "objectives.regions"))

    def cell(self, run: Run, *, good: bool | None = None) -> Cell:
        """Requests that are meant; `good`: only those with an animation, or only those without."""
        begin, end = run.window(self.from_s, self.until_s)
        sources = self.sources(run)
        return run.tally.select(begin, end, sources, lambda _, to: good is None or bool(to) == good)

    def whose(self) -> str:
        """For texts."""
        return "" if self.regions == ALL else f" of {self.regions}"

    def when(self) -> str:
        """For texts."""
        if not self.from_s and self.until_s is None:
            return ""
        return f", from {self.from_s:g} s on" if self.until_s is None else f", {self.from_s:g} to {self.until_s:g} s"


class Failed(Objective):
    """Requests without an animation, as a share of all.

    Attributes:
        at_most: of them.
    """

    at_most: Share

    def text(self) -> str:
        return f"at most {self.at_most:.1%} of the requests{self.whose()} fail{self.when()}"

    def judge(self, run: Run) -> Finding:
        if not self.sources(run):
            return nobody(self.kind, self.text())
        failed, count = self.cell(run, good=False).count, self.cell(run).count
        return judge_share(self.kind, self.text(), failed, count, at_most=self.at_most, sigma=self.sigma)


class Refused(Objective):
    """Requests that end with 429, as a share of all."""

    at_most: Share

    def text(self) -> str:
        return f"at most {self.at_most:.1%} of the requests{self.whose()} are refused{self.when()}"

    def judge(self, run: Run) -> Finding:
        if not self.sources(run):
            return nobody(self.kind, self.text())
        cell = self.cell(run)
        return judge_share(self.kind, self.text(), cell.busy, cell.count, at_most=self.at_most, sigma=self.sigma)


class AtHome(Objective):
    """Requests that the region of their user answers, as a share of those with an animation."""

    at_least: Share

    def text(self) -> str:
        return f"at least {self.at_least:.1%} of the requests{self.whose()} are answered at home{self.when()}"

    def judge(self, run: Run) -> Finding:
        sources = self.sources(run)
        if not sources:
            return nobody(self.kind, self.text())
        home = run.tally.select(*run.window(self.from_s, self.until_s), sources, lambda source, to: source == to).count
        of = self.cell(run, good=True).count
        return judge_share(self.kind, self.text(), home, of, at_least=self.at_least, sigma=self.sigma)


class Quantile(Objective):
    """A limit that most requests keep.

    Attributes:
        quantile: share of the requests that keeps it.
    """

    quantile: Annotated[Share, Field(gt=0, lt=1)] = 0.95

    @abstractmethod
    def beyond(self, run: Run) -> tuple[int, int]:
        """Return requests beyond the limit, and all that count."""

    def judge(self, run: Run) -> Finding:
        if not self.sources(run):
            return nobody(self.kind, self.text())
        return judge_share(self.kind, self.text(), *self.beyond(run), at_most=1 - self.quantile, sigma=self.sigma)


class Attempts(Quantile):
    """Attempts that an edge makes for a request.

    Attributes:
        at_most: attempts.
    """

    quantile: Annotated[Share, Field(gt=0, lt=1)] = 0.99
    at_most: Count

    def text(self) -> str:
        return f"{self.quantile:.0%} of the requests{self.whose()} need at most {self.at_most} attempts{self.when()}"

    def beyond(self, run: Run) -> tuple[int, int]:
        attempts = self.cell(run).attempts
        return sum(n for tries, n in attempts.items() if tries > self.at_most), attempts.total()


class Wait(Quantile):
    """Time from when a request was due that is neither computing nor the way to the region and back.

    Attributes:
        at_most_jobs: so many times the fleet's `service_time_s`.
    """

    at_most_jobs: Positive

    def text(self) -> str:
        limit = f"{self.at_most_jobs:g} x service_time_s"
        return f"{self.quantile:.0%} of the requests{self.whose()} wait at most {limit}{self.when()}"

    def beyond(self, run: Run) -> tuple[int, int]:
        waits = self.cell(run, good=True).wait
        return waits.above(self.at_most_jobs * run.fleet.service_time_s), waits.total


class Latency(Quantile):
    """Time from when a request was due to the last byte of its animation.

    Attributes:
        at_most_s: seconds.
    """

    at_most_s: Positive

    def text(self) -> str:
        return f"{100 * self.quantile:g} % of the requests{self.whose()} take at most {self.at_most_s:g} s{self.when()}"

    def beyond(self, run: Run) -> tuple[int, int]:
        took = self.cell(run, good=True).latency
        return took.above(self.at_most_s), took.total


class Recovers(Objective):
    """After something is over, requests are soon served as usual: a bin of time is well when few in it are not.

    Attributes:
        after_s: when it is over, in seconds of the scenario.
        within_s: so soon after, in seconds of the scenario.
        wait_jobs: a request that waits longer (times `service_time_s`) is not served as usual, nor is one that fails.
        share: of the requests of a bin, that may be so.
        bin_s: width of a bin, in seconds of the scenario.
    """

    after_s: Number
    within_s: Positive
    wait_jobs: Positive = 2.0
    share: Annotated[Share, Field(lt=1)] = 0.2
    bin_s: Positive = 5.0

    def text(self) -> str:
        return f"requests{self.whose()} are served as usual {self.within_s:g} s after {self.after_s:g} s"

    def check(self, duration_s: float, key: str) -> None:
        super().check(duration_s, key)
        if self.after_s + self.within_s + self.bin_s > duration_s:
            text = f"{self.after_s:g} + within_s + bin_s is after the end ({duration_s:g}), so that it cannot be seen"
            raise InputError(text, key=f"{key}.after_s")

    def judge(self, run: Run) -> Finding:
        sources = self.sources(run)
        if not sources:
            return nobody(self.kind, self.text())
        well_at, requests = self.after_s, 0
        at_s = self.after_s
        while at_s + self.bin_s <= run.duration_s + 1e-9:
            begin, end = run.window(at_s, at_s + self.bin_s)
            cell = run.tally.select(begin, end, sources)
            good = run.tally.select(begin, end, sources, lambda _, to: bool(to))
            slow = good.wait.above(self.wait_jobs * run.fleet.service_time_s)
            if cell.count and (cell.count - good.count + slow) > self.share * cell.count + 1:
                well_at = at_s + self.bin_s
            requests += cell.count
            at_s += self.bin_s
        took = well_at - self.after_s
        why = f"after {took:g} s" if well_at < run.duration_s else "not before the end"
        verdict: Verdict = "passed" if took <= self.within_s else "failed"
        if not requests:
            return Finding(self.kind, self.text(), "not judged", why="no requests after it", needed=True)
        return Finding(self.kind, self.text(), verdict, took, self.within_s, requests=requests, why=why)


class NoCascade(Objective):
    """Trouble of one region stays there: the users of `regions`, who have none, are served as ever.

    Attributes:
        failed_at_most: share of their requests.
        wait_jobs: that 95 % of them wait at most, times `service_time_s`.
        at_home_at_least: share of their requests that stays with them.
    """

    failed_at_most: Share = 0.01
    wait_jobs: Positive = 4.0
    at_home_at_least: Share = 0.8

    def text(self) -> str:
        return f"trouble elsewhere does not reach the users{self.whose()}{self.when()}"

    def judge(self, run: Run) -> Finding:
        common: dict[str, Any] = {
            "kind": self.kind,
            "regions": self.regions,
            "from_s": self.from_s,
            "until_s": self.until_s,
            "sigma": self.sigma,
        }
        parts: tuple[Objective, ...] = (
            Failed(**common, at_most=self.failed_at_most),
            Wait(**common, at_most_jobs=self.wait_jobs),
            AtHome(**common, at_least=self.at_home_at_least),
        )
        found = worst([about(one.judge(run), one.text()) for one in parts])
        return replace(found, kind=self.kind, text=self.text())


class Tables(Objective):
    """The control loop answers, and publishes tables; where it can be asked.

    Attributes:
        at_least: tables, in the whole run.
        silent_at_most: share of the times that it is asked, without an answer.
    """

    at_least: Count = 1
    silent_at_most: Share = 0.5

    def text(self) -> str:
        return f"the control loop answers, and publishes {self.at_least} tables or more"

    def judge(self, run: Run) -> Finding:
        observed = run.observed
        if observed.tables is None:
            return Finding(self.kind, self.text(), "not judged", why="no control loop was named that could be asked")
        silent = observed.silent_share > self.silent_at_most
        why = f"{observed.tables} tables; it was silent {observed.silent_share:.0%} of the times that it was asked"
        verdict: Verdict = "failed" if silent or observed.tables < self.at_least else "passed"
        return Finding(self.kind, self.text(), verdict, observed.tables, self.at_least, why=why)
