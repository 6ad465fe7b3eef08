"""What a rollout is: steps, pauses, and limits of the judge. The keys of `rollout.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from ..errors import InputError
from ..files import read_yaml
from ..schema import Items, Number, Positive, Strict, validated, wrong

SLOW_JOBS = 1.25
"""Of the fleet's `service_time_s`: a job that takes longer is slow, unless the limits say otherwise."""

_Margin = Annotated[float, Field(gt=0, lt=1)]


class Limits(Strict):
    """How much worse than the stable version a candidate may be, as a difference of shares.

    Attributes:
        failures: of jobs that end with an error of the server, or whose answer is lost.
        slow: of jobs that take a server longer than `slow_s`.
        refusals: of jobs that a server refuses, or that find none.
        rejections: of jobs that are called malformed (4xx). Users' own mistakes meet both versions alike.
        clips: of the clips that are compared (`routing.rollout.shadow`), those with which something is wrong.
        objective: share of all users' jobs that may fail through the candidate. A next step is taken when they would be
            within it even if the candidate failed as often as chance still allows.
        slow_s: see above; None: 1.25 times the fleet's `service_time_s`.
        error: probability that a candidate within the limits ever fails, and that one beyond them ever passes.
    """

    failures: _Margin = 0.003
    slow: _Margin = 0.05
    refusals: _Margin = 0.02
    rejections: _Margin = 0.02
    clips: _Margin = 0.05
    objective: _Margin = 0.001
    slow_s: Positive | None = None
    error: Annotated[float, Field(gt=0, le=0.5)] = 0.05

    @property
    def margins(self) -> Mapping[str, float]:
        """Of each comparison, by its name."""
        return {name: getattr(self, name) for name in ("failures", "slow", "refusals", "rejections")}


class Step(Strict):
    """One step.

    Attributes:
        share: of the fleet's GPU servers that the candidate has; at least one server.
        pause_s: so long the step lasts at least.
    """

    share: Annotated[float, Field(gt=0, lt=1)]
    pause_s: Number = 300.0


class Probe(Strict):
    """The request that a server answers before and after it is given the candidate, so that the clips can be compared.

    Attributes:
        picture: file to animate; None: a disk on a slope of grey.
        form: other fields.
        limit_s: an answer that takes longer is none.
    """

    picture: str | None = None
    form: Mapping[str, str] = {"prompt": "a red circle moves up", "seed": "1", "format": "gif"}
    limit_s: Positive = 600.0


class RolloutSettings(Strict):
    """A rollout.

    Attributes:
        steps: one after the other; after the last all servers get the candidate.
        limits: of the judge.
        probe: what servers are asked before they get users' jobs; None: nothing.
        look_s: how often counters are read.
        ready_s: time for a server to become ready with the candidate.
        decide_s: a step that has not shown enough after so long ends the rollout.
    """

    steps: Annotated[tuple[Step, ...], Items, Field(min_length=1)] = (
        Step(share=0.1),
        Step(share=0.25),
        Step(share=0.5),
    )
    limits: Limits = Limits()
    probe: Probe | None = Probe()
    look_s: Annotated[Positive, Field(ge=0.1)] = 5.0
    ready_s: Positive = 1200.0
    decide_s: Positive = 7200.0

    @model_validator(mode="after")
    def _steps_rise(self) -> Self:
        shares = [step.share for step in self.steps]
        if shares != sorted(set(shares)):
            raise wrong("steps", "should have more servers from step to step")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            InputError: with file, key and what is wrong.
        """
        try:
            return validated(cls, read_yaml(path))
        except InputError as error:
            raise error if error.file else error.within(path) from None
