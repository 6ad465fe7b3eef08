"""Writes the files of a target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..fleet import Fleet
from ..table import RoutingTable
from . import gateway_api, istio
from .manifests import Place, write_manifests

Target = Literal["istio", "gateway-api"]


@dataclass(frozen=True)
class Rendered:
    """What was written.

    Attributes:
        files: for `kubectl apply -f`.
        notes: what of the fleet's policy the target does not do.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...]


def write_target(target: Target, out: Path, fleet: Fleet, table: RoutingTable, place: Place) -> Rendered:
    """Write a table for a target: one file for Istio, one for each source region for Gateway API.

    Raises:
        RoutingError: the table has more regions in a row than there are units of weight, a name is too long for
            Kubernetes, or a file cannot be written.
    """
    if target == "istio":
        files = {out / "istio.yaml": istio.manifests(fleet, table, place)}
        notes = istio.notes(fleet)
    else:
        files = {out / f"{name}.yaml": gateway_api.manifests(fleet, table, place, name) for name in table.shares}
        notes = gateway_api.notes(fleet)
    for path, manifests in files.items():
        write_manifests(path, manifests)
    return Rendered(tuple(files), tuple(notes))
