"""What a run says: passed, failed, or nothing at all (void)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from .findings import Finding, Run
from .objectives import Objective


class Outcome(StrEnum):
    """Of a run."""

    PASSED = "passed"
    FAILED = "failed"
    VOID = "void"

    @property
    def exit_status(self) -> int:
        """Of the command; 2 is for wrong use."""
        return {"passed": 0, "failed": 1, "void": 3}[self]


WRONG_USE = 2


@dataclass(frozen=True)
class Verdict:
    """Of a run.

    Attributes:
        outcome: what it is.
        reasons: why it is void; none otherwise.
        findings: the objectives, judged. Those of a void run are there to look at, and say nothing.
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...]


def judge(run: Run, objectives: Sequence[Objective], complaints: Sequence[str]) -> Verdict:
    """Judge a run.

    Args:
        run: what came of it.
        objectives: of the scenario.
        complaints: about the generator, or where it sent requests to.
    """
    findings = tuple(one.judge(run) for one in objectives)
    reasons = list(complaints)
    failed = any(one.verdict == "failed" for one in findings)
    if not failed and not reasons:
        reasons += [f"{one.text}: {one.why}" for one in findings if one.verdict == "not judged" and one.needed]
        if not any(one.verdict == "passed" for one in findings):
            reasons.append("no objective could be judged")
    if reasons:
        return Verdict(Outcome.VOID, tuple(reasons), findings)
    return Verdict(Outcome.FAILED if failed else Outcome.PASSED, (), findings)


def lines(verdict: Verdict) -> list[str]:
    """For people."""
    marks = {"passed": "ok    ", "failed": "FAILED", "not judged": "-     "}
    found = [f"{marks[one.verdict]}  {one.text}: {one.why}" for one in verdict.findings]
    if verdict.outcome is Outcome.VOID:
        found += [f"void: {reason}" for reason in verdict.reasons]
    return [*found, f"verdict: {verdict.outcome}"]
