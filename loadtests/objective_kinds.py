"""The kinds of objectives, by the names that scenarios have for them."""

from __future__ import annotations

from collections.abc import Mapping

from routing.errors import InputError
from routing.schema import did_you_mean, validated

from .objectives import (
    AtHome,
    Attempts,
    Failed,
    Latency,
    NoCascade,
    Objective,
    Recovers,
    Refused,
    Tables,
    Wait,
)
from .plan_objectives import FollowsPlan, Leaves, RingOrder

KINDS: Mapping[str, type[Objective]] = {
    "failed": Failed,
    "refused": Refused,
    "at_home": AtHome,
    "attempts": Attempts,
    "wait": Wait,
    "latency": Latency,
    "leaves": Leaves,
    "follows_plan": FollowsPlan,
    "ring_order": RingOrder,
    "recovers": Recovers,
    "no_cascade": NoCascade,
    "tables": Tables,
}


def parse_objective(content: object, key: str) -> Objective:
    """An objective of a file.

    Raises:
        InputError: with the key.
    """
    if not isinstance(content, dict):
        raise InputError("should hold keys and values, with kind among them", key=key)
    kind = content.get("kind")
    if kind is None:
        raise InputError(f"is missing; known are {', '.join(KINDS)}", key=f"{key}.kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{kind} is no kind of objective{did_you_mean(str(kind), KINDS)}", key=f"{key}.kind")
    try:
        return validated(KINDS[kind], content)
    except InputError as error:
        raise InputError(error.message, key=f"{key}.{error.key}" if error.key else key) from None
