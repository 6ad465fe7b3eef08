"""What capacity is planned for (`capacity.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from routing.errors import InputError
from routing.files import read_yaml
from routing.fleet import Fleet
from routing.schema import Items, Number, Positive, RegionName, Share, Strict, did_you_mean, validated, wrong


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise PydanticCustomError("zone", "should be a time zone such as Europe/Berlin or UTC") from None
    return name


ZoneName = Annotated[str, AfterValidator(_zone)]
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
Day = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]


class Launch(Strict):
    """Hours of the week in which demand is times a factor: a launch, a campaign, a match.

    Attributes:
        name: for people.
        factor: of the demand.
        day: of the week, in the zone.
        from_hour: at which it begins.
        hours: how long it lasts; it may go over midnight.
        zone: whose clock that is; one moment for all regions.
        regions: whose demand; none: of all.
    """

    name: Annotated[str, Field(min_length=1)]
    factor: Positive
    day: Day
    from_hour: Annotated[Number, Field(lt=24)]
    hours: Annotated[Positive, Field(le=168)]
    zone: ZoneName = "UTC"
    regions: Annotated[tuple[RegionName, ...], Items] = ()


class Goal(Strict):
    """What users are to get.

    Attributes:
        blocking: share of the requests of a region's busiest interval that may find no free GPU at first, and wait
            and try again.
        blocking_in_loss: the same while a region is lost, which may last hours.
        failures: share that may fail after all retries; the simulator is asked, and the answer is in the report.
        lose_a_region: whether the others are to carry the traffic of any one region that is lost.
    """

    blocking: Annotated[Share, Field(gt=0, lt=1)] = 0.01
    blocking_in_loss: Annotated[Share, Field(gt=0, lt=1)] = 0.05
    failures: Annotated[Share, Field(gt=0)] = 0.001
    lose_a_region: bool = True

    @model_validator(mode="after")
    def _loss_is_no_stricter(self) -> Self:
        if self.blocking_in_loss < self.blocking:
            raise wrong("blocking_in_loss", f"{self.blocking_in_loss:g} is below blocking ({self.blocking:g})")
        return self


class Prices(Strict):
    """What GPUs cost.

    Attributes:
        currency: of all prices.
        gpu_hour: price of a GPU server for an hour.
        regions: where it is another.
    """

    currency: Annotated[str, Field(min_length=1, max_length=12)] = "USD"
    gpu_hour: Positive = 2.0
    regions: Mapping[RegionName, Positive] = {}

    def of(self, region: str) -> float:
        """Price of an hour there."""
        return self.regions.get(region, self.gpu_hour)


class Planning(Strict):
    """What capacity is planned for. All that it leaves out is an assumption that the report names.

    Attributes:
        name: for people.
        growth: demand of then over demand of the history.
        launches: on top.
        peak: quantile, over the weeks of the history, of the demand at one time of the week; 1 is the highest.
        peak_within: highest demand within an interval of the history over its mean.
        zone: of times in the history that have none; None: such times are an error.
        model: that the benchmark must be of; None: any.
        rung: of the benchmark; None: the last that was kept.
        service_time_factor: service time in production over that of the benchmark.
        goal: for users.
        margin: GPUs on top, as a share: those that are down for maintenance, or slow.
        prices: of GPUs.
    """

    name: Annotated[str, Field(min_length=1)] = "as it was"
    growth: Positive = 1.0
    launches: Annotated[tuple[Launch, ...], Items] = ()
    peak: Annotated[Share, Field(ge=0.5)] = 1.0
    peak_within: Annotated[Positive, Field(ge=1)] = 1.1
    zone: ZoneName | None = None
    model: str | None = None
    rung: str | None = None
    service_time_factor: Positive = 1.0
    goal: Goal = Goal()
    margin: Annotated[Share, Field(lt=1)] = 0.05
    prices: Prices = Prices()

    def check(self, fleet: Fleet) -> None:
        """See that it is of this fleet.

        Raises:
            InputError: with the key.
        """
        named = [(f"launches.{i}.regions", name) for i, one in enumerate(self.launches) for name in one.regions]
        named += [("prices.regions", name) for name in self.prices.regions]
        for key, name in named:
            if name not in fleet.regions:
                raise InputError(f"{name} is none of the fleet's regions{did_you_mean(name, fleet.regions)}", key=key)


def load_planning(path: Path | None, fleet: Fleet) -> Planning:
    """Read what capacity is planned for; without a file, all is assumed.

    Raises:
        InputError: with the file and the key.
    """
    if path is None:
        return Planning()
    content = read_yaml(path)
    try:
        planning = validated(Planning, content)
        planning.check(fleet)
    except InputError as error:
        raise error.within(path) from None
    return planning
