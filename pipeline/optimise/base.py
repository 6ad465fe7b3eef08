"""What optimisations share: they can be undone, and say so when they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import StillmotionError


class NotApplicable(StillmotionError):
    """An optimisation does not fit a model or a machine; the text names the module and the reason.

    Nothing has been changed when it is raised, so that a run can go on without the optimisation.
    """


@dataclass(frozen=True)
class Change:
    """An optimisation that is in place.

    Attributes:
        name: of the optimisation, as in the report.
        detail: what was changed, for people.
        undo: puts back what was there before. Undo several in reverse order.
    """

    name: str
    detail: str
    undo: Callable[[], None]
