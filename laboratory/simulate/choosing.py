"""How an edge chooses where an attempt goes: a region by the table, then a dispatcher of it.

As Envoy does: regions in weighted rotation (earliest deadline first, whose shares are exact in any window). The first
attempts of a job go by the table, the others to the regions that it keeps for them (`routing.retries.attempt_groups`;
Envoy's retry priority `previous_priorities`).
"""

from __future__ import annotations

import numpy as np

from .compiled import compiled
from .draws import bits, uniform
from .state import State

NOBODY = -1
_CHOICES = 4096  # draws for choices start here among those of a job


@compiled
def choose(s: State, source: int, key: np.uint64, attempt: int) -> int:
    """The host that an attempt goes to, or `NOBODY` where no region is alive.

    Args:
        s: state.
        source: of the job.
        key: of the job's draws.
        attempt: 1, 2, ...
    """
    groups = 0
    while groups < s.row_lengths.shape[0] and s.row_lengths[groups, source] > 0:
        groups += 1
    if groups == 0:
        return NOBODY
    group = (attempt - 1) % groups
    return _host(s, _next_region(s, group, source), bits(key, _CHOICES + 2 * attempt + 1))


@compiled
def _next_region(s: State, group: int, source: int) -> int:
    """Take the region that is due first, which is due again after 1 / share."""
    row = s.rows[group, source]
    region, share, due = row[0].region, row[0].share, row[0].due + 1.0 / row[0].share
    size = s.row_lengths[group, source]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and row[child + 1].due < row[child].due:
            child += 1
        if due <= row[child].due:
            break
        row[at].region = row[child].region
        row[at].share = row[child].share
        row[at].due = row[child].due
        at = child
    row[at].region = region
    row[at].share = share
    row[at].due = due
    return region


@compiled
def _host(s: State, region: int, b: np.uint64) -> int:
    """One of the region's dispatchers."""
    here = s.regions[region]
    return here.first_host if here.hosts <= 1 else here.first_host + int(uniform(b) * here.hosts)
