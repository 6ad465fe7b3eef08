"""GPU servers that come and go in a scenario: its section `scaling`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from routing.schema import Count, Items, Number, Positive, RegionName, Share, Strict, wrong


class Span(Strict):
    """A part of the scenario.

    Attributes:
        at_s, until_s: when it begins and ends; without `until_s`, with the scenario.
    """

    at_s: Number
    until_s: Positive | None = None

    @model_validator(mode="after")
    def _ends_later(self) -> Self:
        if self.until_s is not None and self.until_s <= self.at_s:
            raise wrong("until_s", f"{self.until_s:g} is not after at_s ({self.at_s:g})")
        return self


class Reclaim(Span):
    """All spot servers of a region are taken away, and there are none for a while.

    Attributes:
        region: where.
    """

    region: RegionName


class Spot(Strict):
    """GPU servers that are cheap, and may be taken away.

    Attributes:
        share: of the servers above `least`.
        price: of one, as a share of another server's.
        life_s: how long one lasts on average; none is older or younger than another in that.
        notice_s: from the warning until it is gone. A job that takes longer is lost.
        reclaims: moments at which a whole region loses all.
    """

    share: Share = 1.0
    price: Share = 0.35
    life_s: Positive = 43_200.0
    notice_s: Number = 30.0
    reclaims: Annotated[tuple[Reclaim, ...], Items] = ()


class Scaling(Strict):
    """GPU servers that come and go; the fleet's `gpus` of a region are the most.

    The values left out are those of the ScaledObject that `render` writes (`scaling` has the rule).

    Attributes:
        busy_share: of its time that each server is to be busy.
        by_demand: servers come for what users of their region ask for, wherever that is computed (scale first). Without
            it they come for the jobs that the region has, after some have left it (offload first).
        least: servers of each region, at least. 0: all may go, and demand brings the first one back.
        region_least: the same for some regions.
        least_share: the same as a share of the region's `gpus`; the larger counts.
        start_s: from the decision for a server until it is ready: a pod, weights, warming up.
        mean_s: over which jobs are averaged.
        look_s: how often is looked.
        up_share, up_servers, up_s: at most so many come in that time: a share of what there was, or servers.
        down_share, down_s: at most such a share goes in that time.
        settle_s: nobody goes while more were wanted within that time.
        activate: jobs, at servers or asked for, above which a region without servers gets one.
        cooldown_s: the last ones go when there were no more jobs than that for so long.
        spot: cheap servers that may be taken away; None: there are none.
        price: of a server for an hour, in any currency; None: the fleet's `gpu_hour_price`.
    """

    busy_share: Annotated[Share, Field(gt=0)] = 0.6
    by_demand: bool = False
    least: Count = 1
    region_least: Mapping[RegionName, Count] = {}
    least_share: Share = 0.0
    start_s: Number = 300.0
    mean_s: Positive = 120.0
    look_s: Annotated[Positive, Field(ge=1)] = 15.0
    up_share: Positive = 0.5
    up_servers: Annotated[Count, Field(ge=1)] = 4
    up_s: Positive = 60.0
    down_share: Share = 0.1
    down_s: Positive = 120.0
    settle_s: Number = 900.0
    activate: Number = 0.3
    cooldown_s: Number = 300.0
    spot: Spot | None = None
    price: Positive | None = None
