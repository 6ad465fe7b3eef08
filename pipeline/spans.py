"""Where the time of an animation goes: its parts have names, and whoever listens is told when they begin and end.

Nobody is told unless `listen` is on: then a part costs a look at one variable. What a listener makes of it, traces for
example, is not known here.

On a GPU a part ends when its work has been handed over, not when it is done: the time of a part that waits for the GPU,
as the decoding at the end does, holds that of parts before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

Listener = Callable[[str, Mapping[str, int | float | str]], AbstractContextManager[object]]
"""Called with the name of a part and what is known of it; what it gives is entered and left with the part."""

_listener: ContextVar[Listener | None] = ContextVar("stillmotion_listener", default=None)
_NOTHING = nullcontext()


def part(name: str, **about: float | str) -> AbstractContextManager[object]:
    """Name what happens within the block.

    Args:
        name: the same for the same part of each animation.
        about: what tells one from another, as the number of a step.
    """
    listener = _listener.get()
    return _NOTHING if listener is None else listener(name, about)


@contextmanager
def listen(listener: Listener | None) -> Iterator[None]:
    """Tell of all parts that begin within the block, in this thread; None tells nobody."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
