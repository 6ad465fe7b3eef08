"""Switches of operators: a table that stays as it is, and regions that are to get no jobs. They outlive the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..errors import InputError
from ..files import read_json, write_atomically
from ..fleet import Fleet
from ..schema import Items, RegionName, Strict, did_you_mean, validated
from .journal import Journal

FILE = "switches.json"


class State(Strict):
    """How the switches are.

    Attributes:
        frozen: whether the table stays as it is.
        drained: regions that get no jobs, as far as others can take them.
    """

    frozen: bool = False
    drained: Annotated[tuple[RegionName, ...], Items] = ()


class Switches:
    """The switches of a control loop, kept in its folder and noted in its journal.

    Args:
        folder: that the loop publishes into.
        fleet: whose regions may be drained.
        journal: that each change goes to.
    """

    def __init__(self, folder: Path, fleet: Fleet, journal: Journal) -> None:
        self._path, self._fleet, self._journal = folder / FILE, fleet, journal
        self.state = State()
        if not self._path.exists():
            return
        try:
            self.state = validated(State, read_json(self._path))
            self._check(self.state.drained)
        except InputError as error:
            self.state = State()
            journal.note("switches_unusable", f"{error}; nothing is frozen or drained")

    @property
    def text(self) -> str:
        """One line for people; empty: all is as usual."""
        found = ["the table is frozen"] if self.state.frozen else []
        found += [f"{name} is drained" for name in self.state.drained]
        return ", ".join(found)

    def freeze(self) -> None:
        """Keep the table as it is."""
        self._set(State(frozen=True, drained=self.state.drained), "frozen by an operator: the table stays as it is")

    def drain(self, region: str) -> None:
        """Give a region no more jobs, step by step, as far as others can take them.

        Raises:
            InputError: it is none of the fleet's.
        """
        self._check((region,))
        drained = tuple(sorted({*self.state.drained, region}))
        self._set(State(frozen=self.state.frozen, drained=drained), f"{region} is drained by an operator")

    def resume(self, region: str | None = None) -> None:
        """End a region's drain; without a region, end all drains and the freeze.

        Raises:
            InputError: it is none of the fleet's.
        """
        if region is None:
            self._set(State(), "resumed by an operator: nothing is frozen or drained")
            return
        self._check((region,))
        drained = tuple(name for name in self.state.drained if name != region)
        self._set(State(frozen=self.state.frozen, drained=drained), f"{region} is resumed by an operator")

    def _set(self, state: State, text: str) -> None:
        write_atomically(self._path, state.model_dump_json(indent=2) + "\n")
        self.state = state
        self._journal.note("switched", text, frozen=state.frozen, drained=list(state.drained))

    def _check(self, regions: tuple[str, ...]) -> None:
        for name in regions:
            if name not in self._fleet.regions:
                raise InputError(f"{name} is none of the fleet's regions{did_you_mean(name, self._fleet.regions)}")
