"""A scenario of a load test: traffic in terms of whatever fleet it meets, what breaks, and what is then expected.

It shares its parts with scenarios of `routing simulate`: days, changes, failures. What differs is that regions are
named by their role, and demand by the fleet's thresholds, so that a file fits fleets that its author has never seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from laboratory.simulate.scenario import Change, Day, Failure
from routing.errors import InputError
from routing.files import read_yaml
from routing.schema import Count, Items, Number, Positive, RegionName, Share, Strict, did_you_mean, validated, wrong

from . import thresholds
from .generator import Limits
from .objective_kinds import parse_objective
from .objectives import Objective
from .replay import Replay
from .roles import Selector

FOLDER = Path(__file__).parent / "scenarios"
"""Of the scenarios that come with the package."""
LAUNCH = ("steady", "thresholds", "hot-spot", "spike", "herd", "region-loss")
"""What is run when nothing is named: each planted fault (`plant.FAULTS`) fails one of them at least."""


class Level(Strict):
    """Demand by the fleet's thresholds: `t[n] + part * (t[n+1] - t[n])`, as a share of what a region can compute.

    Attributes:
        threshold: n; 0 is no demand, and after the last comes a full region. Counted from 1 as the fleet file lists
            them; what is above the last is the last.
        part: of the way to the next.
    """

    threshold: Count
    part: Share = 0.5


Demand = Number | Level


class Herd(Strict):
    """Jobs of a region that come together.

    Attributes:
        at_s: when.
        region: whose users.
        jobs_per_gpu: how many, for each GPU of the region.
        over_s: evenly over so long; 0: in one moment.
    """

    at_s: Number
    region: RegionName
    jobs_per_gpu: Annotated[Positive, Field(le=1000)]
    over_s: Number = 0.0


class Traffic(Strict):
    """Demand over time.

    Attributes:
        load: of each region, as a share of what its GPUs can compute.
        region_load: the same for some.
        day: makes all of it the peak of a day. Regions without `utc_offset` and longitude are spread over it.
        day_s: how long that day takes.
        changes: factors for a while; those of one moment multiply.
        herds: jobs together.
        spacing: `poisson`: of many users who know nothing of each other. `even`: at equal distances, for what would
            drown in chance where demand is a few requests per second.
        replay: what edges have recorded, besides.
    """

    load: Demand = 0.0
    region_load: Mapping[RegionName, Demand] = {}
    day: Day | None = None
    day_s: Positive = 86_400.0
    changes: Annotated[tuple[Change, ...], Items] = ()
    herds: Annotated[tuple[Herd, ...], Items] = ()
    spacing: Literal["poisson", "even"] = "poisson"
    replay: Replay | None = None


class Scenario(Strict):
    """A load test. Times in seconds from its start.

    Attributes:
        name: for people.
        about: what it tries, in a sentence.
        roles: regions by what they are in the fleet. Wherever a region is named, a role can be, and stands for all
            regions that have it; `all` is one by itself.
        duration_s: requests are sent for so long; then those under way are waited for.
        for_smoothing_s: times are for a fleet with this `smoothing_s`, and scale with it: what takes a control loop a
            minute takes one half as patient half of that. None: they stay as they are.
        seed: of all random draws.
        traffic: see `Traffic`.
        failures: what breaks for a while, as in the simulator: a region that dies, or is slow.
        objectives: what is expected; see `objective_kinds`.
        thresholds: the same as k6 has it; see `thresholds`.
        generator: what makes the run void.
    """

    name: Annotated[str, Field(min_length=1)]
    about: str = ""
    roles: Mapping[RegionName, Selector] = {}
    duration_s: Positive
    for_smoothing_s: Positive | None = None
    seed: Count = 1
    traffic: Traffic
    failures: Annotated[tuple[Failure, ...], Items] = ()
    objectives: Annotated[tuple[Any, ...], Items] = ()
    thresholds: Mapping[str, Annotated[tuple[str, ...], Items]] = {}
    generator: Limits = Limits()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.objectives and not any(self.thresholds.values()):
            raise wrong("objectives", "should hold at least one, or give thresholds")
        for key, times in (
            ("traffic.changes", [one.at_s for one in self.traffic.changes]),
            ("traffic.herds", [one.at_s for one in self.traffic.herds]),
            ("failures", [one.at_s for one in self.failures]),
        ):
            for i, at_s in enumerate(times):
                if at_s >= self.duration_s:
                    raise wrong(f"{key}.{i}.at_s", f"{at_s:g} is not before the end ({self.duration_s:g})")
        for i, failure in enumerate(self.failures):
            if failure.vanishes:
                raise wrong(f"failures.{i}.vanishes", "is for the simulator: here a region refuses connections")
            if failure.gpus is not None:
                raise wrong(f"failures.{i}.gpus", "is for the simulator: here a region fails as a whole")
        return self

    def keyed_objectives(self) -> Iterator[tuple[str, Objective]]:
        """Give each objective with the key where it stands.

        Raises:
            InputError: with the key.
        """
        given = ((f"objectives.{i}", content) for i, content in enumerate(self.objectives))
        for key, content in (*given, *thresholds.objectives(self.thresholds)):
            one = parse_objective(content, key)
            one.check(self.duration_s, key)
            yield key, one


def load_scenario(name: str | Path) -> Scenario:
    """Read a scenario: one of the package's by its name, or a file.

    Raises:
        InputError: there is none, or a key or value is wrong; with file and key.
    """
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"} and not path.is_file():
        known = names()
        if str(name) not in known:
            raise InputError(f"{name} is no scenario of the package and no file{did_you_mean(str(name), known)}")
        path = FOLDER / f"{name}.yaml"
    try:
        scenario = validated(Scenario, read_yaml(path))
        list(scenario.keyed_objectives())
    except InputError as error:
        raise error if error.file else error.within(path) from None
    if (replay := scenario.traffic.replay) is None:
        return scenario
    traffic = scenario.traffic.model_copy(update={"replay": replay.seen_from(path.parent)})
    return scenario.model_copy(update={"traffic": traffic})


def names() -> list[str]:
    """Scenarios of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))
