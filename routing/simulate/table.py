"""The routing table as edges use it: rows without the regions that are known to be dead."""

from __future__ import annotations

from ..control.steps import Shares
from ..fleet import Fleet
from .draws import key_of
from .state import State

_TURNS = 4  # streams of draws; others are in `build`


class Rows:
    """The table, and which regions edges know to be dead.

    Args:
        fleet: whose regions they are.
        seed: of the turns at which rotations begin.

    Attributes:
        shares: the table as published.
        dead: regions that edges send nothing to.
    """

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet, self._seed = fleet, seed
        self._index = {name: i for i, name in enumerate(fleet.names)}
        self._written = 0
        self.shares: Shares = {}
        self.dead: set[str] = set()

    def write(self, state: State) -> None:
        """Make all edges use it. Their rotations begin anew, each anywhere in its turn (Envoy draws the number of
        its first picks).
        """
        self._written += 1
        for source, i in self._index.items():
            row = self._alive(source)
            total = sum(row.values())
            places = []
            for to, share in row.items():
                key = key_of(self._seed, _TURNS, self._written, i, self._index[to])
                part = share / total
                places.append((int(key >> 11) * 2.0**-53 / part, self._index[to], part))
            rotation = state.scalars["rotation"][0] == 1
            # In rotation they are a heap by the time they are due; drawn ones are looked through by share.
            places.sort(key=lambda place: place[:2] if rotation else (-place[2], place[1]))
            state.row_lengths[i] = len(places)
            for k, (due, to_index, part) in enumerate(places):
                state.rows[i, k] = (to_index, part, due)

    def _alive(self, source: str) -> dict[str, float]:
        """The row without dead regions; where none is left, all that are alive in rings that overflow may use."""
        row = {to: share for to, share in self.shares[source].items() if share > 0 and to not in self.dead}
        if row:
            return row
        rings = self._fleet.rings(source)[: self._fleet.farthest_ring + 1]
        return {
            name: 1.0 for ring in rings for name in ring if name not in self.dead and self._fleet.regions[name].gpus
        }
