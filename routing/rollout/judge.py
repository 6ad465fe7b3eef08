"""Stable against candidate: is the candidate as good, to the margins, or worse, or can it not be told yet?

Each share has an interval that holds at any time (`confidence`), so that one may look as often as one likes and stop as
soon as one knows. The error is divided among the comparisons and their two sides. A comparison fails when even the
best that chance allows the candidate is worse than the worst that it allows the stable version, by more than the
margin; it passes when the worst of the candidate is within the margin of the best of the stable version. Clips of
copied requests hold a candidate up only while more of them are wrong than the margin allows: they are compared when
GPUs are idle, which may be never.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .confidence import interval
from .counters import Tally, Version
from .settings import Limits

Verdict = Literal["pass", "fail", "cannot tell"]


@dataclass(frozen=True)
class Share:
    """A share of jobs.

    Attributes:
        events, jobs: those that count, of how many.
        low, high: what chance allows the share to be.
    """

    events: int
    jobs: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.events} of {self.jobs} ({self.low:.2%} to {self.high:.2%})"


@dataclass(frozen=True)
class Clips:
    """Pairs of clips that both versions made of the same requests.

    Attributes:
        compared: pairs.
        wrong: those of which the candidate's is none, or has something wrong with it.
        text: more for people.
    """

    compared: int
    wrong: int
    text: str = ""

    def since(self, first: Clips) -> Clips:
        """Return what came after an earlier comparison."""
        return Clips(self.compared - first.compared, self.wrong - first.wrong, self.text)


@dataclass(frozen=True)
class Finding:
    """One comparison.

    Attributes:
        name: failures, slow, refusals, rejections or clips.
        verdict: of it.
        stable, candidate: the shares.
        margin: by which the candidate's may be larger.
        note: more for people.
    """

    name: str
    verdict: Verdict
    stable: Share
    candidate: Share
    margin: float
    note: str = ""

    @property
    def looks_worse(self) -> bool:
        """Whether more counted than the margin allows, be it by chance."""
        return self.candidate.events > self.margin * self.candidate.jobs

    @property
    def text(self) -> str:
        """One line for people."""
        text = f"{self.name}: candidate {self.candidate}, stable {self.stable}, margin {self.margin:.2%}"
        return f"{text}: {self.verdict}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Judgement:
    """What is known.

    Attributes:
        verdict: fail, if one comparison fails; pass, if each passes.
        why: one line for people.
        findings: the comparisons.
        models: names of the models, by version.
    """

    verdict: Verdict
    why: str
    findings: tuple[Finding, ...]
    models: Mapping[Version, tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "verdict": self.verdict,
            "why": self.why,
            "models": {version: list(names) for version, names in self.models.items()},
            "findings": [asdict(one) | {"text": one.text} for one in self.findings],
        }


def judge(stable: Tally, candidate: Tally, limits: Limits, slow_s: float, clips: Clips | None = None) -> Judgement:
    """Compare two versions.

    Args:
        stable, candidate: what became of their jobs.
        limits: margins and error.
        slow_s: a job that takes longer is slow.
        clips: of both versions, that were compared; None: none are.
    """
    error = limits.error / (2 * (len(limits.margins) + (clips is not None)))
    counted = [
        {
            "failures": (one.failed, one.jobs),
            "slow": (one.slower(slow_s), one.timed),
            "refusals": (one.refused, one.jobs + one.refused),
            "rejections": (one.rejected, one.jobs),
        }
        for one in (stable, candidate)
    ]
    findings = []
    for name, margin in limits.margins.items():
        ours, theirs = (Share(*one[name], *interval(*one[name], error)) for one in counted)
        findings.append(Finding(name, _verdict(ours, theirs, margin), ours, theirs, margin))
    open_ones = [one for one in findings if one.verdict == "cannot tell"]
    if clips is not None:
        ours = Share(0, clips.compared, 0.0, 0.0)
        share = Share(clips.wrong, clips.compared, *interval(clips.wrong, clips.compared, error))
        finding = Finding("clips", _verdict(ours, share, limits.clips), ours, share, limits.clips, clips.text)
        findings.append(finding)
        if finding.verdict == "cannot tell" and finding.looks_worse:
            open_ones.append(finding)
    models: dict[Version, tuple[str, ...]] = {
        "stable": tuple(sorted(stable.models)),
        "candidate": tuple(sorted(candidate.models)),
    }
    failed = [one for one in findings if one.verdict == "fail"]
    if failed:
        return Judgement("fail", "; ".join(one.text for one in failed), tuple(findings), models)
    if not candidate.jobs + candidate.refused:
        return Judgement("cannot tell", "the candidate has had no job", tuple(findings), models)
    if open_ones:
        return Judgement("cannot tell", "; ".join(one.text for one in open_ones), tuple(findings), models)
    return Judgement("pass", "; ".join(one.text for one in findings), tuple(findings), models)


def _verdict(stable: Share, candidate: Share, margin: float) -> Verdict:
    if candidate.low > stable.high + margin:
        return "fail"
    if candidate.high <= stable.low + margin:
        return "pass"
    return "cannot tell"
