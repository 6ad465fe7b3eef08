"""How long jobs of stand-in GPU servers take: a distribution, given as text.

0.5                  always 0.5 s, also written fixed:0.5
exponential:0.5      mean 0.5 s
lognormal:0.5,0.3    mean 0.5 s, standard deviation 0.3 of the mean
bench.json           the times that `python -m pipeline bench --json` measured of its last rung
bench.json#8 x 1     of the rung of this name
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routing.errors import InputError

_LONGEST_S = 3600.0
_KINDS = "seconds, exponential:MEAN, lognormal:MEAN,VARIATION, or a file of `pipeline bench --json`"


@dataclass(frozen=True)
class ServiceTimes:
    """A distribution of service times.

    Attributes:
        text: as given; `parse` gives the same distribution again.
        mean_s: of the distribution.
        draw: one time in seconds, from a generator of random numbers.
    """

    text: str
    mean_s: float
    draw: Callable[[random.Random], float]

    @classmethod
    def parse(cls, text: str) -> ServiceTimes:
        """The distribution that a text names.

        Raises:
            InputError: it names none, or the file cannot be used.
        """
        kind, colon, rest = text.partition(":")
        if not colon and (seconds := _number(text)) is not None:
            kind, rest = "fixed", text
        numbers = [_number(part) for part in rest.split(",")]
        match kind, numbers:
            case "fixed", [float() as mean_s] if 0 <= mean_s <= _LONGEST_S:
                seconds = mean_s
                return cls(text, mean_s, lambda _: seconds)
            case "exponential", [float() as mean_s] if 0 < mean_s <= _LONGEST_S:
                rate = 1 / mean_s
                return cls(text, mean_s, lambda generator: generator.expovariate(rate))
            case "lognormal", [float() as mean_s, float() as variation] if 0 < mean_s <= _LONGEST_S and variation >= 0:
                # Of a lognormal with parameters m and s: mean exp(m + s^2/2), variation sqrt(exp(s^2) - 1).
                s = math.sqrt(math.log1p(variation**2))
                m = math.log(mean_s) - s * s / 2
                return cls(text, mean_s, lambda generator: generator.lognormvariate(m, s))
            case "fixed" | "exponential" | "lognormal", _:
                raise InputError(f"{text} cannot be used; give {_KINDS}, up to {_LONGEST_S:g} s", key="--service-time")
        return cls._measured(text)

    @classmethod
    def _measured(cls, text: str) -> ServiceTimes:
        name, _, rung = text.partition("#")
        path = Path(name)
        if not path.is_file():
            raise InputError(f"{text} is none of {_KINDS}", key="--service-time")
        times = _times(path, rung)
        return cls(f"{path.resolve()}#{rung}", sum(times) / len(times), lambda generator: generator.choice(times))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _times(path: Path, rung: str) -> list[float]:
    # Read as plain JSON, and not by `files`: a stand-in starts in a tenth of a second because it imports next to
    # nothing.
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        rungs = {str(one["name"]): one for one in content["rungs"]}
        chosen = rungs[rung] if rung else list(rungs.values())[-1]
        times = [float(value) for value in chosen.get("times_s") or [chosen["median_s"]]]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        what = f"has no times of the rung {rung}" if rung else "has no times of a rung"
        raise InputError(f"{what} ({type(error).__name__})", key="--service-time", file=str(path)) from None
    if not all(0 < value <= _LONGEST_S for value in times):
        raise InputError(f"has times that are not between 0 and {_LONGEST_S:g} s", file=str(path))
    return times
