"""Paths of the teacher that are sampled once and learned from many times (`Trajectory.TEACHER`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.families import Cond


@dataclass(frozen=True)
class KeptPath:
    """One batch of the source with the teacher's sampling of it.

    Attributes:
        states: `(batch, student_steps + 1, ...)`, as `teacher_states` gives them.
        cond: what the student is given of the batch.
        order: `(student_steps,)`, a permutation: which step the first clip learns at each visit.
    """

    states: Tensor
    cond: Cond
    order: Tensor

    def at(self, visit: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a visit learns: where a step of each clip begins, where it ends, and which step it is.

        Neighbours in the batch learn neighbouring steps, so that a batch has many different ones; in as many visits
        as there are steps each clip learns each of them once.
        """
        clips, stops = self.states.shape[:2]
        first = self.order[visit % (stops - 1)]
        rows = torch.arange(clips, device=self.states.device)
        steps = (first + rows) % (stops - 1)
        return self.states[rows, steps], self.states[rows, steps + 1], steps


class KeptPaths:
    """The paths of one process, by their numbers in the source; they come round again after the last.

    Args:
        count: of paths.
        processes: of the group, to which numbers of batches are dealt in turn.
    """

    def __init__(self, count: int, processes: int) -> None:
        self.count, self.processes = count, processes
        self._paths: dict[int, KeptPath] = {}

    def __setitem__(self, number: int, path: KeptPath) -> None:
        self._paths[number] = path

    def missing(self, batches: Iterable[int]) -> list[int]:
        """Return the numbers in the source, each once, of the paths that these batches need and that are not kept."""
        wanted = dict.fromkeys(self._place(batch)[0] for batch in batches)
        return [number for number in wanted if number not in self._paths]

    def batch(self, number: int) -> tuple[Tensor, Tensor, Tensor, Cond]:
        """Return what a batch learns, as `KeptPath.at` has it, and what the student is given of it."""
        own, visit = self._place(number)
        path = self._paths[own]
        return *path.at(visit), path.cond

    def _place(self, batch: int) -> tuple[int, int]:
        """Return the number in the source of a batch's path, and how often the path came before."""
        turn, process = divmod(batch, self.processes)
        visit, turn = divmod(turn, self.count)
        return turn * self.processes + process, visit
