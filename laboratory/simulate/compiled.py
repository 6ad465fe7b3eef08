"""The seam to numba, which compiles the event loop: `compiled` for its parts, `cached` for what Python calls."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from routing.errors import RoutingError

try:
    import numba
    from numba.extending import intrinsic
except ModuleNotFoundError as error:  # interpreted, a day of a large fleet takes a week: better said than started
    raise RoutingError("simulations need numba: pip install 'stillmotion[laboratory]'") from error

_FILES = ("calendar", "choosing", "compiled", "draws", "loop", "state", "streams")
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
