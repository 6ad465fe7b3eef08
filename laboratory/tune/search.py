"""The search: differential evolution, from the policy that the fleet has, the same for the same seed.

It asks for no slope, which a simulation does not have, takes whole numbers and real ones together, and comes with
SciPy, which is here already (decision 0015 has the alternatives).

Source: Storn, Price: "Differential evolution", Journal of Global Optimization 11, 1997.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..simulate.experiment import Experiment
from .figures import Figures, FleetUnderTest, SimulatedFleet, missed, score
from .goal import Goal
from .space import Policy, dimensions, place_of, policy_at, policy_of, with_policy

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
