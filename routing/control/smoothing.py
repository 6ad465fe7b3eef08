"""Estimates that follow what is measured with a time constant, whatever the distance between measurements."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp


@dataclass(frozen=True)
class Estimate:
    """A smoothed value.

    What was known fades with exp(-t / tau); a measurement that covers dt seconds weighs 1 - exp(-dt / tau). So
    two measurements of dt are worth one of 2 dt. At first, while little is known, the value is the plain mean
    of what was measured: otherwise the very first measurement would count for as long as tau.

    Attributes:
        value: smoothed.
        at: monotonic seconds of the last measurement.
        weight: of all that was measured, 0 to 1: 1 - exp(-t / tau) after t seconds without a gap.
    """

    value: float
    at: float
    weight: float

    @classmethod
    def first(cls, value: float, at: float, seconds: float, tau_s: float) -> Estimate:
        """Of one measurement, which covers so many seconds."""
        return cls(value, at, _part(seconds, tau_s))

    def followed(self, value: float, at: float, seconds: float, tau_s: float) -> Estimate:
        """After one more measurement.

        Args:
            value: measured.
            at: when; before the last one it changes nothing.
            seconds: that it covers.
            tau_s: time constant.
        """
        part = _part(seconds, tau_s)
        if at <= self.at or part <= 0:
            return self
        kept = self.weight * (1.0 - _part(at - self.at, tau_s))
        weight = kept + part
        return Estimate((kept * self.value + part * value) / weight, at, min(weight, 1.0))

    def rising_slowly(self, value: float, at: float, tau_s: float) -> Estimate:
        """As `followed`, but at once for what falls: capacity that is gone is gone, and that comes back may go
        again.
        """
        if value < self.value:
            return Estimate(value, max(at, self.at), 1.0)
        return Estimate(self.value, self.at, 1.0).followed(value, at, at - self.at, tau_s)


def _part(seconds: float, tau_s: float) -> float:
    return 1.0 - exp(-max(0.0, seconds) / tau_s)
