"""How far what was trained twice lies apart."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def apart(one: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    """Return the distance of two lists of tensors as a share of the second one's length.

    Adam divides each gradient by its size, so that a rounding, which depends on how memory is aligned, decides the
    whole step of a weight whose gradient is nearly zero. Such weights are few: runs that differ by that alone lie
    1e-5 apart, and an update that is lost or seen twice makes it 1e-3 and more.
    """
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(one, other, strict=True)]
    distance = sum(float((a - b).square().sum()) for a, b in pairs)
    return float(torch.tensor(distance / sum(float(b.square().sum()) for _, b in pairs)).sqrt())


SAME = 2e-4
"""Runs nearer than this have learned the same."""
