"""What optimisations share: they can be undone, and say so when they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import StillmotionError

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline


class NotApplicable(StillmotionError):
    """An optimisation does not fit a model or a machine; the text names the module and the reason.

    Nothing has been changed when it is raised, so that a run can go on without the optimisation.
    """


def has_unet(pipe: ImageAnimationPipeline) -> bool:
    """Return whether the network is a U-Net, whose layers differ in shape; a transformer's are alike."""
    return "unet" in pipe.family.networks


@dataclass(frozen=True)
class Change:
    """An optimisation that is in place.

    Attributes:
        name: name of the optimisation, as in the report.
        detail: what was changed, for people.
        undo: puts back what was there before. Undo several in reverse order.
    """

    name: str
    detail: str
    undo: Callable[[], None]


@dataclass
class Applied:
    """Optimisations that are in place together, and the reasons of those that do not fit."""

    changes: list[Change] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def fits(self, apply: Callable[[], Change]) -> bool:
        """Apply one where it fits, and keep the reason where it does not."""
        try:
            self.changes.append(apply())
        except NotApplicable as error:
            self.skipped.append(str(error))
            return False
        return True

    def has(self, name: str) -> bool:
        """Return whether an optimisation of this name is in place."""
        return any(change.name == name for change in self.changes)

    def undo(self) -> None:
        """Put back what was there before all of them."""
        while self.changes:
            self.changes.pop().undo()
