"""What a policy has to meet (`goal.yaml`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

from pydantic import Field, model_validator

from routing.errors import InputError
from routing.files import read_yaml
from routing.fleet import Fleet
from routing.schema import Count, Number, Positive, Share, Strict, validated, wrong

from ..simulate.scenario import Experiment, with_fleet


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


_NOT_MET = 10.0
"""A policy that misses a limit is worse than each that does not, whatever its waits."""


@dataclass(frozen=True)
class Figures:
    """What users and servers saw.

    Attributes:
        failure_share, in_region_share: of the requests, and of the served.
        attempts_per_request, attempts_p99: of the edges.
        mean_wait_s, p95_wait_s, p99_wait_s: all of a served request's time but its computation.
    """

    failure_share: float
    in_region_share: float
    attempts_per_request: float
    attempts_p99: float
    mean_wait_s: float
    p95_wait_s: float
    p99_wait_s: float


class FleetUnderTest(Protocol):
    """Whatever can run a scenario under a policy: the simulator, or a fleet of real processes.

    A real one takes `fleet` for its Envoys and its control loop, sends the scenario's arrivals (`python -m routing
    simulate --trace` writes them), and measures. `confirm` then says whether both agree.
    """

    def measure(self, experiment: Experiment, fleet: Fleet, seed: int) -> Figures:
        """Run the scenario once.

        Args:
            experiment: scenario, service times, arrivals.
            fleet: with the policy that is tried.
            seed: of the arrivals.
        """


class SimulatedFleet:
    """The simulator as a fleet under test."""

    def measure(self, experiment: Experiment, fleet: Fleet, seed: int) -> Figures:
        """See `FleetUnderTest`."""
        from ..simulate.results import results
        from ..simulate.run import simulate

        # Without a time series, which takes as long as all the rest.
        end = experiment.scenario.duration_s
        plain = replace(experiment, scenario=experiment.scenario.model_copy(update={"series_s": end}))
        return figures_of(results(simulate(with_fleet(plain, fleet), seed)))


def figures_of(result: dict[str, Any]) -> Figures:
    """The figures of a result of `routing simulate`; of nothing, nothing fails and nothing waits."""
    wait = result["wait_s"]
    return Figures(
        failure_share=result["failure_share"] or 0.0,
        in_region_share=1.0 if result["in_region_share"] is None else result["in_region_share"],
        attempts_per_request=result["attempts_per_request"] or 1.0,
        attempts_p99=float(result["attempts_p99"] or 1),
        mean_wait_s=wait["mean"] or 0.0,
        p95_wait_s=wait["p95"] or 0.0,
        p99_wait_s=wait["p99"] or 0.0,
    )


def missed(figures: Figures, goal: Goal) -> dict[str, float]:
    """{limit: how far it is missed, as a share of it}; empty where all are met."""
    found = {}
    for name, limit in goal.limits.model_dump(exclude_none=True).items():
        value = getattr(figures, name)
        excess = limit - value if name == "in_region_share" else value - limit
        if excess > 0:
            found[name] = excess / limit if limit > 0 else excess * 1000
    return found


def score(figures: list[Figures], goal: Goal, service_s: float) -> float:
    """What a search makes small: waits and amplification where all limits are met, else how far they are missed.

    Args:
        figures: of each scenario and seed.
        goal: limits and weights.
        service_s: unit of waits.
    """
    misses = sum(sum(missed(one, goal).values()) for one in figures)
    costs = [
        goal.weights.wait * one.mean_wait_s / service_s + goal.weights.amplification * (one.attempts_per_request - 1)
        for one in figures
    ]
    cost = sum(costs) / len(costs)
    # Among policies that miss, waits still count a little, so that a search has a slope to follow.
    return _NOT_MET * (1 + misses) + min(cost, _NOT_MET) / 10 if misses else min(cost, _NOT_MET)


@dataclass(frozen=True)
class Agreement:
    """One figure, simulated and measured.

    Attributes:
        name: of the figure.
        simulated, measured: its values.
        agrees: within 10 % of the measured, or a point (of shares and attempts) or 10 ms.
    """

    name: str
    simulated: float
    measured: float
    agrees: bool


def confirm(simulated: Figures, measured: Figures) -> tuple[Agreement, ...]:
    """Compare the figures that the simulator's choice rests on with those of a real fleet."""
    found = []
    for name, value in asdict(simulated).items():
        other = getattr(measured, name)
        agrees = abs(value - other) <= max(0.1 * abs(other), 0.01)
        found.append(Agreement(name, value, other, agrees))
    return tuple(found)
