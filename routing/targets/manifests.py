"""What resources of both targets have in common."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from ..errors import InputError, RoutingError
from ..files import write_atomically
from ..yaml_text import yaml_text

Manifest = dict[str, Any]

_LONGEST_NAME = 63  # of a Service
_UNITS_MS = (("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))


@dataclass(frozen=True)
class Place:
    """Where the resources go.

    Attributes:
        namespace: of all of them.
        port: of the Services of dispatchers.
    """

    namespace: str = "stillmotion"
    port: int = 8080


def manifest(api: str, kind: str, name: str, place: Place, spec: Manifest) -> Manifest:
    """A resource.

    Raises:
        InputError: the name is too long for Kubernetes.
    """
    if len(name) > _LONGEST_NAME:
        raise InputError(f"{name}: names in Kubernetes have at most {_LONGEST_NAME} characters", key="regions")
    labels = {"app.kubernetes.io/part-of": "stillmotion", "app.kubernetes.io/managed-by": "stillmotion-routing"}
    metadata = {"name": name, "namespace": place.namespace, "labels": labels}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}


def duration(seconds: float) -> str:
    """As Kubernetes takes it, without fractions: 1.5 is `1s500ms`. At least 1 ms; rounded up."""
    left = max(1, ceil(round(seconds * 1000, 6)))
    parts = []
    for unit, size in _UNITS_MS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def write_manifests(path: Path, manifests: list[Manifest]) -> None:
    """One file, replaced at once.

    Raises:
        RoutingError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RoutingError(f"{path}: cannot be written ({error.strerror})") from error
    write_atomically(path, yaml_text(*manifests))
