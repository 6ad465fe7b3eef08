"""The seam to numba, which compiles the event loop, and random draws.

`compiled` is for parts of it, `cached` for what Python calls.

Draws are by counter: draw i of a key is a function of both, so that it does not depend on what was drawn before. The
arrivals and service times of a job are the same then under each policy, which makes policies comparable with far fewer
jobs (common random numbers), and the same on each machine: there is integer arithmetic and +, -, *, / of IEEE doubles
only, and no function of a mathematical library.

Bits are those of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from routing.errors import RoutingError

try:
    import numba
    from numba.extending import intrinsic
except ModuleNotFoundError as error:  # interpreted, a day of a large fleet takes a week: better said than started
    raise RoutingError("simulations need numba: pip install 'stillmotion[laboratory]'") from error

_FILES = ("compiled", "events", "loop", "state")
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """A part of the compiled code, laid into whatever calls it: passed as values, the arrays of a state would cost
    more than most parts do.
    """
    return cast(Function, numba.njit(forceinline=True, error_model="numpy")(function))


def compiled_apart(function: Function) -> Function:
    """A part that is called where it is seldom needed, so that the loop around it stays small."""
    return cast(Function, numba.njit(error_model="numpy")(function))


@intrinsic  # type: ignore[untyped-decorator]
def borrowed(_context: Any, array: Any) -> Any:
    """The same array, but not counted as a reference, for code that returns while its caller holds the array.

    Counting takes most of the time of a loop that hands arrays to small functions: nine tenths of this one's.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        found = context.make_array(array)(context, builder, arguments[0])
        found.meminfo = context.get_constant_null(numba.types.MemInfoPointer(numba.types.voidptr))
        found.parent = context.get_constant_null(numba.types.pyobject)
        return found._getvalue()  # noqa: SLF001  # numba's own intrinsics return so

    return array(array), generate


def cached(function: Function) -> Function:
    """What Python calls: compiled once for a kind of machine, then read from numba's cache."""
    return cast(Function, numba.njit(cache=True, error_model="numpy")(function))


def digest() -> int:
    """Of all files that are compiled.

    numba looks for changes in the file of a function alone. As a variable of its closure, this becomes part of the
    cache's key, so that a change in any of them compiles anew.
    """
    content = b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in _FILES)
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big")


_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1

GAMMA, M1, M2 = np.uint64(_GAMMA), np.uint64(_M1), np.uint64(_M2)
U1, U11, U27, U30, U31 = np.uint64(1), np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)
TOP = np.uint64(2**63)
TWO_TO_MINUS_53, TWO_TO_MINUS_64 = 2.0**-53, 2.0**-64
LN_2 = 0.6931471805599453
SQRT_HALF = 0.7071067811865476
LN_SQRT_HALF = -LN_2 / 2


def key_of(seed: int, *path: int) -> np.uint64:
    """Key of a stream of draws, for Python.

    Args:
        seed: of the run.
        path: numbers that tell the streams of a run apart.
    """
    key = _mix(seed & _MASK)
    for number in path:
        key = _mix((key + (number + 1) * _GAMMA) & _MASK)
    return np.uint64(key)


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * _M1) & _MASK
    x = ((x ^ (x >> 27)) * _M2) & _MASK
    return x ^ (x >> 31)


@compiled
def bits(key: np.uint64, index: int) -> np.uint64:
    """64 random bits: draw `index` of a key."""
    x = key + np.uint64(index) * GAMMA
    x = (x ^ (x >> U30)) * M1
    x = (x ^ (x >> U27)) * M2
    return x ^ (x >> U31)


@compiled
def uniform(b: np.uint64) -> float:
    """Uniform in [0, 1) from 64 bits."""
    return np.float64(b >> U11) * TWO_TO_MINUS_53


@compiled
def exponential(b: np.uint64) -> float:
    """Exponential of mean 1 from 64 bits: -ln(u), to 2e-16 of the value.

    u = m * 2^-z with m in [1/2, 1); ln m by the series of 2 atanh(s), s = (m - c) / (m + c), c = sqrt(1/2),
    whose |s| is at most 0.172: ten terms leave 2e-16.
    """
    b = b | U1
    z = 0.0
    while b < TOP:
        b = b << U1
        z += 1.0
    m = np.float64(b) * TWO_TO_MINUS_64
    s = (m - SQRT_HALF) / (m + SQRT_HALF)
    q = s * s
    series = 1.0 / 19.0
    series = series * q + 1.0 / 17.0
    series = series * q + 1.0 / 15.0
    series = series * q + 1.0 / 13.0
    series = series * q + 1.0 / 11.0
    series = series * q + 1.0 / 9.0
    series = series * q + 1.0 / 7.0
    series = series * q + 1.0 / 5.0
    series = series * q + 1.0 / 3.0
    series = series * q + 1.0
    return z * LN_2 - (LN_SQRT_HALF + 2.0 * s * series)
