"""The routing table as edges use it: rows without the regions that are known to be dead."""

from __future__ import annotations

from routing.control.smoothing import Shares
from routing.fleet import Fleet
from routing.retries import attempt_groups

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
            groups = self._alive(source)
            state.row_lengths[:, i] = 0
            for group, row in enumerate(groups[: state.rows.shape[0]]):
                total = sum(row.values())
                places = []
                for to, share in row.items():
                    key = key_of(self._seed, _TURNS, self._written, i, self._index[to])
                    part = share / total
                    places.append((int(key >> 11) * 2.0**-53 / part, self._index[to], part))
                places.sort()  # a heap by the time they are due
                state.row_lengths[group, i] = len(places)
                for k, (due, to_index, part) in enumerate(places):
                    state.rows[group, i, k] = (to_index, part, due)

    def _alive(self, source: str) -> list[dict[str, float]]:
        """The groups of attempts without dead regions, and without groups of which none is alive."""
        found = []
        for group in attempt_groups(self._fleet, source, self.shares[source]):
            alive = {to: share for to, share in group.items() if share > 0 and self._is_alive(to)}
            if alive:
                found.append(alive)
        return found

    def _is_alive(self, name: str) -> bool:
        # A dispatcher without GPU servers is never ready.
        return name not in self.dead and self._fleet.regions[name].gpus > 0
