"""How a rollout is, kept as `rollout.json` in its folder, and the orders that it finds there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from ..files import read_json, write_atomically
from ..schema import Count, RegionName, Strict, validated

Phase = Literal["taking", "judging", "promoting", "promoted", "aborting", "aborted"]
OVER: frozenset[Phase] = frozenset({"promoted", "aborted"})


class State(Strict):
    """How a rollout is.

    Attributes:
        stable, candidate: names of the models.
        phase: what it does.
        why: one line for people.
        step: of the settings; 0 before the first.
        servers: that the step gives the candidate, by region.
        judgement: the judge's last, as `Judgement.to_dict` has it.
    """

    FILE: ClassVar = "rollout.json"

    stable: str
    candidate: str
    phase: Phase
    why: str
    step: Count = 0
    servers: Mapping[RegionName, Count] = {}
    judgement: Mapping[str, Any] = {}

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.phase in OVER

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the state of the folder's rollout; None: there was none.

        Raises:
            InputError: the file is damaged.
        """
        path = folder / cls.FILE
        return validated(cls, read_json(path)) if path.exists() else None

    def write(self, folder: Path) -> None:
        """Keep it."""
        write_atomically(folder / self.FILE, self.model_dump_json(indent=2) + "\n")


class Order(Strict):
    """What an operator wants of a rollout that runs."""

    FILE: ClassVar = "order.json"

    what: Literal["promote", "abort"]

    def give(self, folder: Path) -> None:
        """Leave it where the rollout finds it."""
        write_atomically(folder / self.FILE, self.model_dump_json() + "\n")

    @classmethod
    def take(cls, folder: Path) -> Self | None:
        """Return the order that was left, and take it away."""
        path = folder / cls.FILE
        if not path.exists():
            return None
        found = validated(cls, read_json(path))
        path.unlink(missing_ok=True)
        return found
