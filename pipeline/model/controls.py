"""Numbers that a call may choose beside the common ones, of families that have them. Needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Control:
    """A number that a call may choose.

    Attributes:
        least, most: limits, both allowed.
        default: value of a call that does not choose; None: it depends on the other arguments.
        whole: whether only whole numbers are allowed.
        about: what it does, for the page and the documentation.
    """

    least: float
    most: float
    default: float | None
    whole: bool = False
    about: str = ""

    def problem(self, value: float) -> str | None:
        """Return what is wrong with a value, or None."""
        if not self.least <= value <= self.most:
            return f"{value:g} is outside {self.least:g} to {self.most:g}"
        if self.whole and value != int(value):
            return f"{value:g} is not a whole number"
        return None


KNOWN_CONTROLS = (
    "decode_noise_scale",
    "decode_timestep",
    "guidance_scale_2",
    "min_guidance_scale",
    "motion_bucket_id",
    "motion_scale",
    "noise_aug_strength",
)
"""Names of the controls of any family: what a command or a form may ask for before the model is known."""
