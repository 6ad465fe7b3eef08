"""Checkpoints that survive an interrupt, and when to stop."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from ..writing import write_beside


class Checkpoint:
    """Keeps the state of named objects in one file. A kill or a full disk leaves the last good one."""

    def __init__(self, path: Path, **parts: Any) -> None:
        self.path, self.parts = path, parts

    def load(self) -> int:
        """Restore every part and return the step, or 0 where there is nothing to restore."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])

    def save(self, step: int) -> None:
        """Write all parts.

        Raises:
            StillmotionError: they cannot be written, for example since the disk is full; the last file is kept.
        """
        state = {"step": step, **{name: part.state_dict() for name, part in self.parts.items()}}
        write_beside(self.path, lambda partial: torch.save(state, partial))


def end_of(minutes: float | None) -> float:
    """Return when `minutes` from now will have passed, by `time.monotonic`; never, for None."""
    return math.inf if minutes is None else time.monotonic() + 60 * minutes
