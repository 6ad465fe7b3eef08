"""A file of an adapter and the scale that it is merged at, as a command names them. Needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LoraFile:
    """A file to merge.

    Attributes:
        path: of safetensors.
        scale: that its change is multiplied by; 0 leaves the network as it is.
    """

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> LoraFile:
        """Return what `FILE[:SCALE]` names.

        Raises:
            ValueError: the scale is not a finite number.
        """
        head, colon, tail = text.rpartition(":")
        try:
            scale = float(tail) if colon and head else None
        except ValueError:
            scale = None  # a colon of the file's own name
        if scale is None:
            return cls(Path(text))
        if not -100 <= scale <= 100:
            raise ValueError(f"{text}: the scale {tail} is outside -100 to 100")
        return cls(Path(head), scale)
