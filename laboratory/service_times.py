"""How long a GPU server computes: one distribution for simulated servers and for stand-ins, given as text or by a file.

0.5                  always 0.5 s, also written fixed:0.5
exponential:0.5      mean 0.5 s
lognormal:0.5,0.3    mean 0.5 s, standard deviation 0.3 of the mean
bench.json           the times that `python -m pipeline bench --json` measured of its last rung that was kept
bench.json#8 x 1     of the rung of this name
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routing.errors import InputError
from routing.files import read_json
from routing.schema import MOST, did_you_mean

_ATOMS = 4096
_LONGEST_S = 3600.0
_KINDS = "seconds, exponential:MEAN, lognormal:MEAN,VARIATION, or a file of `pipeline bench --json`"
_DIGITS = 9  # beyond them, mathematical libraries differ


@dataclass(frozen=True)
class ServiceTimes:
    """A distribution.

    Attributes:
        mean_s: its mean.
        atoms: times in s, equally likely, or none where it is exponential: that one is drawn exactly.
        text: what it is, for people.
    """

    mean_s: float
    atoms: NDArray[np.float64] | None
    text: str

    @property
    def cv(self) -> float:
        """Standard deviation over mean."""
        return 1.0 if self.atoms is None else float(np.std(self.atoms)) / self.mean_s

    def draw(self, generator: random.Random) -> float:
        """One time in seconds."""
        if self.atoms is None:
            return generator.expovariate(1 / self.mean_s)
        return float(self.atoms[generator.randrange(len(self.atoms))])


def parse(text: str) -> ServiceTimes:
    """Return the distribution that a text names; its own `text` names the same distribution again.

    Raises:
        InputError: the text names none, or the file cannot be used.
    """
    kind, colon, rest = text.partition(":")
    if not colon and _number(text) is not None:
        kind, rest = "fixed", text
    match kind, [_number(part) for part in rest.split(",")]:
        case "fixed", [float() as mean_s] if 0 <= mean_s <= _LONGEST_S:
            return replace(fixed(mean_s), text=text)
        case "exponential", [float() as mean_s] if 0 < mean_s <= _LONGEST_S:
            return replace(exponential(mean_s), text=text)
        case "lognormal", [float() as mean_s, float() as cv] if 0 < mean_s <= _LONGEST_S and cv >= 0:
            return replace(lognormal(mean_s, cv), text=text)
        case "fixed" | "exponential" | "lognormal", _:
            raise InputError(f"{text} cannot be used; give {_KINDS}, up to {_LONGEST_S:g} s", key="--service-time")
    name, _, rung = text.partition("#")
    path = Path(name)
    if not path.is_file():
        raise InputError(f"{text} is none of {_KINDS}", key="--service-time")
    return replace(of_benchmark(path, rung=rung or None), text=f"{path.resolve()}#{rung}")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def fixed(mean_s: float) -> ServiceTimes:
    """The same time always."""
    return ServiceTimes(mean_s, np.array([mean_s]), f"{mean_s:g} s, always")


def exponential(mean_s: float) -> ServiceTimes:
    """Without memory; for comparison with theory, since computations are nothing like it."""
    return ServiceTimes(mean_s, None, f"exponential, mean {mean_s:g} s")


def lognormal(mean_s: float, cv: float) -> ServiceTimes:
    """Log-normal by mean and coefficient of variation: sigma^2 = ln(1 + cv^2), mu = ln(mean) - sigma^2 / 2.

    Each of 4,096 times stands for an equal part of the probability, and is the mean of that part: the mean is
    exact, the deviation low by 1 % at a cv of 1.
    """
    if cv <= 0:
        return fixed(mean_s)
    sigma = math.sqrt(math.log1p(cv * cv))
    normal = NormalDist()
    ends = [-math.inf, *(normal.inv_cdf(i / _ATOMS) for i in range(1, _ATOMS)), math.inf]
    below = [normal.cdf(end - sigma) for end in ends]  # E[X; Z < z] = mean * Phi(z - sigma)
    atoms = [mean_s * _ATOMS * (below[i + 1] - below[i]) for i in range(_ATOMS)]
    rounded = np.array([float(f"{atom:.{_DIGITS}g}") for atom in atoms])
    return ServiceTimes(mean_s, rounded, f"log-normal, mean {mean_s:g} s, deviation {100 * cv:g} % of it")


def measured(times_s: Sequence[float], text: str) -> ServiceTimes:
    """Samples, each as likely as any other."""
    return ServiceTimes(fmean(times_s), np.array(times_s, dtype=float), text)


def of_benchmark(path: Path, *, rung: str | None = None, model: str | None = None) -> ServiceTimes:
    """Times of one request in a benchmark, as `python -m pipeline bench --json` writes them.

    Args:
        path: of the JSON.
        rung: which of its optimisations runs in production; None: the last that was kept.
        model: that it must be of; None: any.

    Raises:
        InputError: it is no such benchmark, of another model, or has no times that can be used.
    """
    content = read_json(path)
    try:
        return _of_content(content, rung, model, path.name)
    except InputError as error:
        raise error.within(path) from None


def _of_content(content: object, rung: str | None, model: str | None, name: str) -> ServiceTimes:
    if not isinstance(content, dict) or not isinstance(content.get("rungs"), list):
        raise InputError("is no benchmark: it has no list `rungs`, as `python -m pipeline bench --json` writes it")
    found = content.get("model")
    if model is not None and found != model:
        raise InputError(f"is of {found or 'a model without a name'}, and {model} is asked for", key="model")
    rungs: dict[str, dict[str, Any]] = {}
    for i, one in enumerate(content["rungs"]):
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise InputError("has no name", key=f"rungs.{i}")
        rungs[one["name"]] = one
    if rung is None:
        whole = [n for n, one in rungs.items() if one.get("kept", True) and not one.get("partial") and _times(one)]
        if not whole:
            raise InputError("none was kept and measured in full", key="rungs")
        rung = whole[-1]
    if rung not in rungs:
        raise InputError(f"there is none named {rung}{did_you_mean(rung, rungs)}", key="rungs")
    if rungs[rung].get("partial"):
        raise InputError("was measured on a part of a request only", key=f"rungs.{rung}")
    times = _times(rungs[rung])
    if not times:
        raise InputError("has no times (`times_s` or `median_s`)", key=f"rungs.{rung}")
    for time in times:
        if not isinstance(time, int | float) or isinstance(time, bool) or not 0 < time <= MOST:
            raise InputError(f"has a time that is no positive number of seconds: {time!r}", key=f"rungs.{rung}")
    what = f"{len(times)} measured times" if len(times) > 1 else "one measured time"
    return measured(times, f"{what} of {found or 'a model'}, {rung} ({name}), mean {fmean(times):.4g} s")


def _times(rung: dict[str, Any]) -> list[Any]:
    times = rung.get("times_s")
    if isinstance(times, list) and times:
        return times
    median = rung.get("median_s")
    return [] if median is None else [median]
