"""The numbers of a policy that are searched for, and the fleet that they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from routing.fleet import DelayPolicy, Fleet, RetryPolicy, Threshold

from ..simulate.scenario import Experiment
from .goal import Figures, FleetUnderTest, Goal, SimulatedFleet, missed, score

_DIGITS = 3  # people have to read them


@dataclass(frozen=True)
class Policy:
    """One set of numbers. All others stay as the fleet has them.

    Attributes:
        attempts: at most, the first included.
        base_interval_s, max_interval_s: of the backoff.
        delay_share, burst_share, delay_s: marginal delay: share of the jobs without and with a burst, and how long
            at most.
        first_threshold, last_threshold: load of the coolest and of the hottest; those between are evenly between.
        target_load: up to which others' overflow fills a region.
    """

    attempts: int
    base_interval_s: float
    max_interval_s: float
    delay_share: float
    burst_share: float
    delay_s: float
    first_threshold: float
    last_threshold: float
    target_load: float


@dataclass(frozen=True)
class Dimension:
    """One number of a search.

    Attributes:
        name: for people.
        low, high: its bounds.
        log: searched over its logarithm.
        whole: a whole number.
    """

    name: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def bounds(self) -> tuple[float, float]:
        """As a search has them."""
        return (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)

    def value(self, x: float) -> float:
        """The number that a place in the search stands for."""
        found = math.exp(x) if self.log else x
        rounded = float(f"{found:.{_DIGITS}g}")
        return min(max(rounded, self.low), self.high)

    def place(self, value: float) -> float:
        """The other way, within the bounds."""
        within = min(max(value, self.low), self.high)
        return math.log(within) if self.log else within


def dimensions(fleet: Fleet) -> tuple[Dimension, ...]:
    """What is searched: times as parts of the service time S, around S/10 and 2 S, which are the rule of thumb."""
    s = fleet.service_time_s
    return (
        Dimension("attempts", 1, 12, whole=True),
        Dimension("base_interval_s", s / 100, s, log=True),
        Dimension("max_interval_s / base_interval_s", 1, 64, log=True),
        Dimension("delay.burst_share", 0.0, 1.0),
        Dimension("delay.share / delay.burst_share", 0.0, 1.0),
        Dimension("delay.max_s", s / 20, 2 * s, log=True),
        Dimension("first threshold", 0.5, 0.95),
        Dimension("last threshold, of the way to 1", 0.0, 0.9),
        Dimension("target_load / first threshold", 0.7, 1.0),
    )


def policy_at(fleet: Fleet, x: Sequence[float]) -> Policy:
    """The policy at a place in the search."""
    attempts, base, ratio, burst, part, delay, first, way, target = (
        one.value(float(at)) for one, at in zip(dimensions(fleet), x, strict=True)
    )
    # Half a per cent is enough for a load; what is nothing is nothing.
    burst = round(burst, 2)
    first = round(first, 3)
    return Policy(
        attempts=round(attempts),
        base_interval_s=base,
        max_interval_s=_short(base * ratio),
        delay_share=round(burst * part, 2),
        burst_share=burst,
        delay_s=delay,
        first_threshold=first,
        last_threshold=round(first + (1 - first) * way, 3) if len(fleet.thresholds) > 1 else first,
        target_load=round(first * target, 3),
    )


def place_of(fleet: Fleet, policy: Policy) -> list[float]:
    """The place of a policy in the search, or the nearest."""
    first = policy.first_threshold
    values = (
        policy.attempts,
        policy.base_interval_s,
        policy.max_interval_s / policy.base_interval_s,
        policy.burst_share,
        policy.delay_share / policy.burst_share if policy.burst_share else 0.0,
        policy.delay_s,
        first,
        (policy.last_threshold - first) / (1 - first) if first < 1 else 0.0,
        policy.target_load / first,
    )
    return [one.place(value) for one, value in zip(dimensions(fleet), values, strict=True)]


def policy_of(fleet: Fleet) -> Policy:
    """The policy that a fleet has now."""
    retry = fleet.retry
    return Policy(
        attempts=retry.attempts,
        base_interval_s=retry.base_interval_s,
        max_interval_s=retry.max_interval_s,
        delay_share=retry.delay.share,
        burst_share=retry.delay.burst_share,
        delay_s=retry.delay.max_s,
        first_threshold=fleet.thresholds[0].load,
        last_threshold=fleet.thresholds[-1].load,
        target_load=fleet.target_load,
    )


def with_policy(fleet: Fleet, policy: Policy) -> Fleet:
    """The fleet under a policy."""
    last = len(fleet.thresholds) - 1
    step = (policy.last_threshold - policy.first_threshold) / max(1, last)
    loads = [round(policy.first_threshold + i * step, 4) for i in range(last + 1)]
    for i in range(1, len(loads)):  # thresholds rise, be it by little
        loads[i] = max(loads[i], round(loads[i - 1] + 1e-4, 4))
    thresholds = tuple(Threshold(load=load, ring=one.ring) for load, one in zip(loads, fleet.thresholds, strict=True))
    retry = RetryPolicy(
        attempts=policy.attempts,
        base_interval_s=policy.base_interval_s,
        max_interval_s=policy.max_interval_s,
        delay=DelayPolicy(share=policy.delay_share, max_s=policy.delay_s, burst_share=policy.burst_share),
    )
    return fleet.model_copy(update={"retry": retry, "thresholds": thresholds, "target_load": policy.target_load})


def fragment(fleet: Fleet) -> str:
    """The part of `fleet.yaml` that a policy is, as YAML."""
    content: dict[str, Any] = {
        "thresholds": [one.model_dump() for one in fleet.thresholds],
        "target_load": fleet.target_load,
        "retry": fleet.retry.model_dump(),
    }
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None)


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


CONFIRM_SEEDS = 3


@dataclass(frozen=True)
class Trial:
    """One policy that was tried.

    Attributes:
        policy: its numbers.
        figures: {scenario: what it did}, the first seed.
        score: what is made small.
        met: whether it meets all limits, in each scenario and with each seed.
    """

    policy: Policy
    figures: dict[str, Figures]
    score: float
    met: bool


@dataclass
class Tuned:
    """What a search found.

    Attributes:
        goal, seed: that were given.
        before: the policy that the fleet had.
        best: the best that was tried.
        trials: all, in order; `before` is the first.
        confirmed: {scenario: figures of the best with seeds that the search did not see}.
    """

    goal: Goal
    seed: int
    before: Trial
    best: Trial
    trials: list[Trial]
    confirmed: dict[str, list[Figures]] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether the best meets the limits with the other seeds too."""
        return self.best.met and not any(
            missed(one, self.goal) for figures in self.confirmed.values() for one in figures
        )


def tune(
    experiments: Sequence[Experiment],
    goal: Goal,
    seed: int = 0,
    *,
    fleet_under_test: FleetUnderTest | None = None,
    progress: Callable[[int, Trial], None] = lambda _count, _best: None,
) -> Tuned:
    """Search for a policy that meets the goal in all scenarios.

    Args:
        experiments: scenarios, of one fleet.
        goal: limits, weights, and how long to search.
        seed: of the search; simulations have those from it on.
        fleet_under_test: None: the simulator.
        progress: is given how many were tried, and the best of them, after each generation.
    """
    from scipy.optimize import differential_evolution

    fleet, test = experiments[0].fleet, fleet_under_test or SimulatedFleet()
    tried: dict[Policy, Trial] = {}

    def trial(policy: Policy) -> Trial:
        if policy not in tried:
            tried[policy] = _try(experiments, goal, policy, test, range(seed, seed + goal.search.seeds))
        return tried[policy]

    def best() -> Trial:
        return min(tried.values(), key=lambda one: one.score)

    before = trial(policy_of(fleet))
    space = dimensions(fleet)
    differential_evolution(
        lambda x: trial(policy_at(fleet, x)).score,
        bounds=[one.bounds for one in space],
        integrality=[one.whole for one in space],
        x0=place_of(fleet, before.policy),
        maxiter=goal.search.generations,
        popsize=goal.search.population,
        init="latinhypercube",
        tol=0,
        polish=False,
        rng=seed,
        callback=lambda intermediate_result: progress(len(tried), best()),  # noqa: ARG005  # SciPy goes by the name
    )
    found = Tuned(goal, seed, before, best(), list(tried.values()))
    seeds = range(seed + goal.search.seeds, seed + goal.search.seeds + CONFIRM_SEEDS)
    for experiment in experiments:
        policy_fleet = with_policy(fleet, found.best.policy)
        found.confirmed[experiment.scenario.name] = [test.measure(experiment, policy_fleet, one) for one in seeds]
    return found


def _try(
    experiments: Sequence[Experiment], goal: Goal, policy: Policy, test: FleetUnderTest, seeds: Sequence[int]
) -> Trial:
    fleet = with_policy(experiments[0].fleet, policy)
    figures = {one.scenario.name: [test.measure(one, fleet, seed) for seed in seeds] for one in experiments}
    every = [one for found in figures.values() for one in found]
    return Trial(
        policy=policy,
        figures={name: found[0] for name, found in figures.items()},
        score=score(every, goal, experiments[0].times.mean_s),
        met=not any(missed(one, goal) for one in every),
    )
