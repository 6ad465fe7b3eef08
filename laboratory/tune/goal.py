"""What a policy has to meet (`goal.yaml`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from routing.errors import InputError
from routing.files import read_yaml
from routing.schema import Count, Number, Positive, Share, Strict, validated, wrong


class Limits(Strict):
    """Limits that hold in each scenario; one that is left out does not count.

    Attributes:
        failure_share: most requests that fail.
        p95_wait_s, p99_wait_s: longest wait (all but the computation) of so many of the served.
        attempts_per_request, attempts_p99: most attempts.
        in_region_share: least requests that are served in their own region.
    """

    failure_share: Share | None = None
    p95_wait_s: Positive | None = None
    p99_wait_s: Positive | None = None
    attempts_per_request: Annotated[Number, Field(ge=1)] | None = None
    attempts_p99: Annotated[Number, Field(ge=1)] | None = None
    in_region_share: Share | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if all(value is None for value in self.model_dump().values()):
            raise wrong("failure_share", "is missing, and so are all other limits; give one")
        return self


class Weights(Strict):
    """What counts among policies that meet the limits.

    Attributes:
        wait: of the mean wait, in service times.
        amplification: of attempts beyond the first.
    """

    wait: Number = 1.0
    amplification: Number = 1.0


class Search(Strict):
    """How long is searched.

    Attributes:
        generations: of policies.
        population: policies in each, for each number that is searched for.
        seeds: of simulations, one run each; a policy is judged by the sum of all.
    """

    generations: Annotated[Count, Field(ge=1, le=1000)] = 8
    population: Annotated[Count, Field(ge=2, le=100)] = 2
    seeds: Annotated[Count, Field(ge=1, le=20)] = 1


class Goal(Strict):
    """A goal.

    Attributes:
        limits: to meet.
        weights: of what is made small then.
        search: how long.
    """

    limits: Limits
    weights: Weights = Weights()
    search: Search = Search()


def load_goal(path: Path) -> Goal:
    """Read a goal.

    Raises:
        InputError: with the file and the key.
    """
    content = read_yaml(path)
    try:
        return validated(Goal, content)
    except InputError as error:
        raise error.within(path) from None
