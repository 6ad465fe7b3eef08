"""A whole rollout: step by step while the judge does not fail the candidate, then all servers, or back.

Whoever moves servers from one version to the other is passed in, as are counters, probes, clock and orders. A rollout
that ends by an error or an interrupt gives the servers back as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import floor, inf
from pathlib import Path
from typing import Any, Literal, Protocol

from ..control.journal import Journal
from ..errors import RoutingError
from . import probe as probes
from .counters import Growth, Source
from .judge import Clips, Judgement, judge
from .probe import Look
from .settings import RolloutSettings
from .state import Order, Phase, State

_BLIND_LOOKS = 12
"""A rollout whose counters cannot be read for so many looks is aborted."""


class NotReadyError(RoutingError):
    """Servers did not become ready with the model that they were given."""


class Watch:
    """What is done while servers are moved; by itself nothing."""

    def look(self) -> None:
        """Look around while one waits; what this raises ends that."""

    def leaves(self, url: str) -> None:
        """See a server that has no job, before it is given the candidate."""

    def arrives(self, url: str) -> None:
        """See a server that is ready with the candidate, before it gets users' jobs."""


class Servers(Protocol):
    """The GPU servers of a fleet."""

    def gpus(self) -> Mapping[str, int]:
        """Return how many there are, by region."""

    def set_candidates(self, wanted: Mapping[str, int], watch: Watch) -> None:
        """Give so many servers of each region the candidate, and the others the stable model; a few at a time.

        Raises:
            NotReadyError: a server does not become ready.
        """

    def promote(self) -> None:
        """Make the candidate the stable model: its servers first, then the others, a few at a time.

        Raises:
            NotReadyError: a server does not become ready.
        """


class Clock(Protocol):
    """Time, in seconds."""

    def now(self) -> float:
        """Return monotonic time."""

    def sleep(self, seconds: float) -> None:
        """Let time go by."""


class WallClock:
    """The machine's."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class _Ended(Exception):  # no error: the rollout is over
    def __init__(self, phase: Literal["abort", "promote"], why: str) -> None:
        super().__init__(why)
        self.phase, self.why = phase, why


@dataclass
class Rollout(Watch):
    """One rollout.

    Attributes:
        settings: of it.
        stable, candidate: names of the models.
        servers: that run them.
        source: of counters.
        ask: gives the clip that the server of a URL makes of a probe; None: there are no probes.
        slow_s: a job that takes longer is slow.
        journal: that each move goes to.
        folder: that its state is kept in, and orders are found.
        clock: time.
        clips: gives the comparison of clips until now; None: nobody compares any.
    """

    settings: RolloutSettings
    stable: str
    candidate: str
    servers: Servers
    source: Source
    ask: Callable[[str], bytes] | None
    slow_s: float
    journal: Journal
    folder: Path
    clock: Clock = field(default_factory=WallClock)
    clips: Callable[[], Clips] | None = None

    def __post_init__(self) -> None:
        self._growth = Growth()
        self._state = State(stable=self.stable, candidate=self.candidate, phase="taking", why="it begins")
        self._judgement: Judgement | None = None
        self._read_at = -inf
        self._stable_clip: Look | None = None
        self._blind_since: float | None = None

    def run(self) -> State:
        """Run it to its end, and return how it ended: promoted or aborted.

        Raises:
            NotReadyError: servers do not become ready with the model that they are to go on with.
        """
        try:
            self._steps()
        except _Ended as ended:
            return self._promote(ended.why) if ended.phase == "promote" else self._abort(ended.why)
        except NotReadyError as error:
            return self._abort(str(error))
        except BaseException as error:
            self._abort(f"the rollout itself ended: {str(error) or type(error).__name__}")
            raise
        raise AssertionError("the last step ends a rollout")

    def _steps(self) -> None:
        self._read(first=True)
        for number, step in enumerate(self.settings.steps, start=1):
            wanted = spread(self.servers.gpus(), step.share)
            self._state = self._state.model_copy(update={"step": number, "servers": wanted})
            text = f"step {number} of {len(self.settings.steps)}: {sum(wanted.values())} servers get {self.candidate}"
            self._note("taking", f"{text} ({', '.join(f'{region} {n}' for region, n in wanted.items() if n)})")
            self.servers.set_candidates(wanted, self)
            self._note("judging", f"step {number}: they are ready; it lasts for {step.pause_s:g} s at least")
            began, last = self.clock.now(), number == len(self.settings.steps)
            while not self._may_go_on(began, step.pause_s, None if last else self.settings.steps[number].share):
                self.look()
                self.clock.sleep(min(self.settings.look_s, 1.0))

    def _may_go_on(self, began: float, pause_s: float, next_share: float | None) -> bool:
        """Whether the next step may begin; after the last one, the end of the rollout is raised."""
        took_s, found = self.clock.now() - began, self._judgement
        if took_s >= pause_s and found is not None:
            if next_share is None and found.verdict == "pass":
                raise _Ended("promote", found.why)
            worst = next(one.candidate.high for one in found.findings if one.name == "failures")
            dubious = any(one.name == "clips" and one.looks_worse for one in found.findings)
            if next_share is not None and worst * next_share <= self.settings.limits.objective and not dubious:
                return True
        if took_s >= self.settings.decide_s:
            why = found.why if found is not None else "no counters"
            raise _Ended("abort", f"cannot tell after {took_s:.0f} s: {why}")
        return False

    def look(self) -> None:
        """Take the operator's orders, read the counters, and let the judge speak."""
        if (order := Order.take(self.folder)) is not None:
            raise _Ended(order.what, f"an operator's order to {order.what}")
        if self.clock.now() - self._read_at >= self.settings.look_s:
            self._read()

    def leaves(self, url: str) -> None:
        """Have the stable model make the clip that the candidate's are compared with, once."""
        if self.ask is None or self._stable_clip is not None:
            return
        try:
            self._stable_clip = probes.look_at_stable(self.ask(url))
        except probes.ProbeError as error:
            self.ask = None
            self._say(f"clips are not compared: of the stable model there is {error}")

    def arrives(self, url: str) -> None:
        """Compare the candidate's clip with the stable one's."""
        if self.ask is None or self._stable_clip is None:
            return
        try:
            why = probes.wrong_with(self._stable_clip, probes.look(self.ask(url)))
        except probes.ProbeError as error:
            why = f"a probe of the candidate has {error}"
        if why:
            raise _Ended("abort", why)

    def _read(self, *, first: bool = False) -> None:
        now = self._read_at = self.clock.now()
        try:
            self._growth.take(self.source.read())
        except RoutingError as error:
            self._blind_since = now if self._blind_since is None else self._blind_since
            if first or now - self._blind_since > _BLIND_LOOKS * self.settings.look_s:
                raise _Ended("abort", f"nobody can judge the candidate: {error}") from None
            return
        self._blind_since = None
        stable, candidate = self._growth.tally("stable"), self._growth.tally("candidate")
        self._judgement = judge(stable, candidate, self.settings.limits, self.slow_s, self.clips and self.clips())
        self._state = self._state.model_copy(update={"judgement": self._judgement.to_dict()})
        self._state.write(self.folder)
        if self._judgement.verdict == "fail":
            raise _Ended("abort", self._judgement.why)

    def _promote(self, why: str) -> State:
        self._note("promoting", why)
        self.servers.promote()
        return self._note("promoted", why)

    def _abort(self, why: str) -> State:
        self._note("aborting", why)
        self.servers.set_candidates(dict.fromkeys(self.servers.gpus(), 0), Watch())
        return self._note("aborted", why)

    def _note(self, phase: Phase, why: str) -> State:
        self._state = self._state.model_copy(update={"phase": phase, "why": why})
        self._state.write(self.folder)
        self._say(f"{phase}: {why}")
        return self._state

    def _say(self, text: str) -> None:
        more: dict[str, Any] = {"stable": self.stable, "candidate": self.candidate}
        if self._judgement is not None:
            more["findings"] = [one.text for one in self._judgement.findings]
        state = self._state
        self.journal.note("rollout", text, phase=state.phase, step=state.step, servers=dict(state.servers), **more)


def spread(gpus: Mapping[str, int], share: float) -> dict[str, int]:
    """Return how many servers of each region make such a share of all: at least one, and in no region the last.

    Whole servers go by the largest remainder, so that a small share begins in one region and not in each.
    """
    most = {region: max(0, count - 1) for region, count in gpus.items()}
    total = min(max(1, round(share * sum(gpus.values()))), sum(most.values()))
    found = {region: min(floor(share * count), most[region]) for region, count in gpus.items()}
    by_remainder = sorted(gpus, key=lambda region: (found[region] - share * gpus[region], region))
    while sum(found.values()) < total:
        for region in by_remainder:
            if found[region] < most[region] and sum(found.values()) < total:
                found[region] += 1
    return found
