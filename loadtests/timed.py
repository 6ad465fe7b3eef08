"""How long a second of a scenario takes."""

from __future__ import annotations

from dataclasses import dataclass

from routing.errors import InputError
from routing.fleet import Fleet

SLOWEST, FASTEST = 0.01, 1000.0


@dataclass(frozen=True)
class Timed:
    """A scenario's times, in seconds of the run.

    Attributes:
        scale: seconds of the run for one of the scenario.
    """

    scale: float

    @classmethod
    def of(cls, for_smoothing_s: float | None, fleet: Fleet, compress: float) -> Timed:
        """For a scenario and a fleet.

        Args:
            for_smoothing_s: of the scenario.
            fleet: that it meets.
            compress: so many times faster than the file has it.

        Raises:
            InputError: nothing can be so much faster or slower.
        """
        if not SLOWEST <= compress <= FASTEST:  # nor for NaN
            raise InputError(f"--compress: {compress:g} is not from {SLOWEST:g} to {FASTEST:g}")
        smoothing = fleet.smoothing_s / for_smoothing_s if for_smoothing_s else 1.0
        return cls(smoothing / compress)

    def __call__(self, seconds: float) -> float:
        return seconds * self.scale
