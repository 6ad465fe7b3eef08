"""Regions by what they are in a fleet, rather than by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from routing.errors import InputError
from routing.fleet import Fleet
from routing.schema import Count, RegionName, Strict, did_you_mean

ALL = "all"


class Near(Strict):
    """Regions around another.

    Attributes:
        near: role or region in the middle.
        ring: the farthest ring that counts; None: the one that the lowest threshold unlocks.
    """

    near: RegionName
    ring: Annotated[Count, Field(ge=1)] | None = None


class Beyond(Strict):
    """Regions farther away than those of `Near` with the same values."""

    beyond: RegionName
    ring: Annotated[Count, Field(ge=1)] | None = None


class Others(Strict):
    """All regions but those of a role."""

    others: RegionName


class Nth(Strict):
    """The n-th region with GPUs of the fleet file; after the last comes the first again.

    Attributes:
        nth: from 1.
    """

    nth: Annotated[Count, Field(ge=1)]


Place = Literal["central", "remote", "largest", "smallest"]
Selector = Place | Near | Beyond | Others | Nth
"""`central`: least mean round trip to the others that have GPUs; `remote`: the largest. `largest`, `smallest`: by GPUs.
The first of the fleet file where several are alike. Regions without GPUs have no role."""

Roles = Mapping[str, tuple[str, ...]]


def resolve(selectors: Mapping[str, Selector], fleet: Fleet, given: Mapping[str, str] | None = None) -> Roles:
    """Regions of each role, in the order of the fleet file; each region is also a role of its own.

    Args:
        selectors: by role.
        fleet: whose regions they are.
        given: regions that somebody chose for some roles instead.

    Raises:
        InputError: a role that is referred to does not exist, or a region that was chosen.
    """
    serving = tuple(name for name, region in fleet.regions.items() if region.gpus)
    found: dict[str, tuple[str, ...]] = {name: (name,) for name in fleet.names} | {ALL: serving}
    for role, region in (given or {}).items():
        if role not in selectors:
            raise InputError(f"the scenario has no role {role}{did_you_mean(role, selectors)}")
        if region not in fleet.regions:
            raise InputError(f"{region} is none of the fleet's regions{did_you_mean(region, fleet.regions)}")
        found[role] = (region,)
    for role, selector in selectors.items():
        if role not in found or (role in fleet.regions and role not in (given or {})):
            found[role] = _select(role, selector, fleet, serving, found)
    return found


def regions(roles: Roles, name: str, key: str) -> tuple[str, ...]:
    """Regions of a role or a name.

    Raises:
        InputError: there is no such role, with the key.
    """
    if name not in roles:
        raise InputError(f"{name} is no role of the scenario and no region of the fleet", key=key)
    return roles[name]


def _select(role: str, selector: Selector, fleet: Fleet, serving: tuple[str, ...], found: Roles) -> tuple[str, ...]:
    if isinstance(selector, str):
        return (_place(selector, fleet, serving),)
    if isinstance(selector, Nth):
        return (serving[(selector.nth - 1) % len(serving)],)
    if isinstance(selector, Others):
        taken = regions(found, selector.others, f"roles.{role}.others")
        return tuple(name for name in serving if name not in taken)
    near = selector.near if isinstance(selector, Near) else selector.beyond
    middle = regions(found, near, f"roles.{role}.{'near' if isinstance(selector, Near) else 'beyond'}")
    last = selector.ring or fleet.thresholds[0].ring
    within = {n for one in middle for n in serving if (ring := fleet.ring(one, n)) is not None and 0 < ring <= last}
    if isinstance(selector, Near):
        return tuple(name for name in serving if name in within and name not in middle)
    return tuple(name for name in serving if name not in within and name not in middle)


def _place(place: Place, fleet: Fleet, serving: tuple[str, ...]) -> str:
    def away_ms(name: str) -> float:
        others = [fleet.latency(name, other) for other in serving if other != name]
        return sum(others) / len(others) if others else 0.0

    match place:
        case "central":
            return min(serving, key=away_ms)
        case "remote":
            return max(serving, key=away_ms)
        case "largest":
            return max(serving, key=lambda name: fleet.regions[name].gpus)
        case "smallest":
            return min(serving, key=lambda name: fleet.regions[name].gpus)
