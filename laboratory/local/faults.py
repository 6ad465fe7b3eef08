"""What may be made to go wrong with a stand-in, for tests of everything around it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Metrics(StrEnum):
    """What `/metrics` does."""

    SOUND = "sound"
    FROZEN = "frozen"
    """The page stays as it is now."""
    ABSURD = "absurd"
    """Values that cannot be: negative, infinite, not a number, far too large."""
    MISSING = "missing"
    """Status 500."""
    LATE = "late"
    """No answer for half a minute."""


@dataclass(frozen=True)
class Faults:
    """What is wrong now.

    Attributes:
        metrics: see `Metrics`.
        ready: whether `/readyz` says so, and jobs are taken.
        slowness: factor of the time that jobs take.
        admission: jobs that are taken at once. They are computed one after the other all the same, so that above 1
            some wait at a server that seems to have taken them.
    """

    metrics: Metrics = Metrics.SOUND
    ready: bool = True
    slowness: float = 1.0
    admission: int = 1


_KEYS = ("metrics", "ready", "slowness", "admission", "down_s")


@dataclass(frozen=True)
class Order:
    """What was asked for.

    Attributes:
        faults: from now on.
        down_s: the stand-in is gone for so long, its connections cut; 0: it is not.
    """

    faults: Faults
    down_s: float = 0.0


def parse(text: bytes, now: Faults) -> Order:
    """Faults as JSON has them, such as `{"metrics": "frozen"}`; what it leaves out stays as it is.

    Raises:
        ValueError: with what is wrong.
    """
    content: Any = json.loads(text)
    if not isinstance(content, dict) or content.keys() - set(_KEYS):
        raise ValueError(f"give an object with {', '.join(_KEYS[:-1])} or {_KEYS[-1]}")
    try:
        metrics = Metrics(content.get("metrics", now.metrics))
    except ValueError:
        raise ValueError(f"metrics is one of {', '.join(Metrics)}") from None
    ready, down_s = content.get("ready", now.ready), content.get("down_s", 0.0)
    if not isinstance(ready, bool):
        raise ValueError("ready is true or false")  # noqa: TRY004  # one kind of error for a wrong document
    if not _is_number(down_s) or not 0 <= down_s <= 3600:
        raise ValueError("down_s is between 0 and 3600")
    slowness, admission = content.get("slowness", now.slowness), content.get("admission", now.admission)
    if not _is_number(slowness) or not 0 < slowness <= 1000:
        raise ValueError("slowness is above 0 and at most 1000")
    if isinstance(admission, bool) or not isinstance(admission, int) or not 1 <= admission <= 100:
        raise ValueError("admission is a whole number from 1 to 100")
    return Order(Faults(metrics, ready, float(slowness), admission), float(down_s))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
