"""What a measured share may as well have been."""

from __future__ import annotations

from math import sqrt


def wilson(count: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share, 95 % by default (Wilson 1927): it is right for few and for none too."""
    if of == 0:
        return 0.0, 1.0
    share = count / of
    middle = share + z * z / (2 * of)
    half = z * sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    # At the ends rounding would leave the share itself outside.
    return min(share, max(0.0, (middle - half) / scale)), max(share, min(1.0, (middle + half) / scale))
