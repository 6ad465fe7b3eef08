"""What a fleet has to carry, and what it can: demand and capacity by region (`load.json`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from .errors import InputError
from .files import read_json
from .fleet import Fleet
from .schema import Number, Strict, did_you_mean, validated


class Load(Strict):
    """Demand and capacity of each region, in requests per second, at one moment.

    Attributes:
        demand_rps: requests that users of a region make; never attempts.
        capacity_rps: what its ready GPUs can compute; 0 when all are down.
        load: {region: {metric: share}}, as measured; for people and regressions, the planner does not read it.
        rps: {source: {destination: x}}, where requests went, as measured; likewise.
    """

    demand_rps: Mapping[str, Number]
    capacity_rps: Mapping[str, Number]
    load: Mapping[str, Mapping[str, Number]] = {}
    rps: Mapping[str, Mapping[str, Number]] = {}

    @classmethod
    def of(cls, fleet: Fleet, demand_rps: Mapping[str, float]) -> Self:
        """A fleet in health, all its GPUs ready, under a demand; a region that is left out has none."""
        demand = {name: float(demand_rps.get(name, 0.0)) for name in fleet.regions} | dict(demand_rps)
        load = validated(cls, {"demand_rps": demand, "capacity_rps": {n: fleet.capacity_rps(n) for n in fleet.regions}})
        load.check(fleet)
        return load

    def check(self, fleet: Fleet) -> None:
        """See that it is of this fleet.

        Raises:
            InputError: a region is unknown, or one is missing in demand or capacity.
        """
        for key, regions in (("demand_rps", self.demand_rps), ("capacity_rps", self.capacity_rps)):
            _check_known(fleet, regions, key)
            for name in fleet.regions:
                if name not in regions:
                    raise InputError("is missing", key=f"{key}.{name}")
        _check_known(fleet, self.load, "load")
        _check_known(fleet, self.rps, "rps")
        for source, row in self.rps.items():
            _check_known(fleet, row, f"rps.{source}")


def _check_known(fleet: Fleet, names: Iterable[str], key: str) -> None:
    for name in names:
        if name not in fleet.regions:
            hint = did_you_mean(name, fleet.regions)
            raise InputError(f"is none of the fleet's regions{hint}", key=f"{key}.{name}")


def load_load(path: Path | str, fleet: Fleet) -> Load:
    """Read a load file.

    Raises:
        InputError: it cannot be read, a key or value is wrong, or it is not of this fleet.
    """
    content = read_json(Path(path))
    try:
        load = validated(Load, content)
        load.check(fleet)
    except InputError as error:
        raise error.within(path) from None
    return load
