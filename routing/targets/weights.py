"""Shares as whole numbers that sum to a hundred, which is what the other targets take."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from ..errors import RoutingError

TOTAL = 100


def integer_weights(shares: Mapping[str, float], total: int = TOTAL) -> dict[str, int]:
    """Weights that sum to `total`, by the largest remainder.

    Each is within 1 of its exact value, but that a share above 0 has at least 1: the floor share is there so
    that retries can leave a full region, and as 0 it would not be. What that takes comes from the largest.

    Args:
        shares: of a row of the table; those of 0 are left out.
        total: of the weights.

    Raises:
        RoutingError: there are more shares than units.
    """
    found = {name: Fraction(share) for name, share in shares.items() if share > 0}
    if len(found) > total:
        raise RoutingError(f"{len(found)} regions have a share, and {total} units do not give each at least one")
    whole = sum(found.values())
    exact = {name: share * total / whole for name, share in found.items()}
    weights = {name: max(1, int(value)) for name, value in exact.items()}
    while (spare := total - sum(weights.values())) > 0:
        for name in sorted(exact, key=lambda name: (weights[name] - exact[name], name))[:spare]:
            weights[name] += 1
    while sum(weights.values()) > total:
        largest = max((name for name in weights if weights[name] > 1), key=lambda name: (weights[name], name))
        weights[largest] -= 1
    return weights
