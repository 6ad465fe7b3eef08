"""Which machines there are, and where their pages are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from ..data_plane import Place
from ..errors import InputError
from ..fleet import Fleet
from .settings import Pages

Tier = Literal["gpu", "edge"]

_PATHS: Mapping[Tier, str] = {"gpu": "/metrics", "edge": "/stats/prometheus"}


@dataclass(frozen=True, order=True)
class Machine:
    """A GPU server or an edge.

    Attributes:
        region: where it is.
        tier: what it is.
        address: host and port, its name in all that is said of it.
    """

    region: str
    tier: Tier
    address: str

    def __str__(self) -> str:
        return f"{self.region} {self.tier} {self.address}"


def targets(fleet: Fleet) -> dict[Machine, str]:
    """Each machine, with the URL of its page: as `metrics.pages` has them, else where the proxies are.

    Raises:
        InputError: those of some region are missing in `metrics.pages`, or this machine has too few ports.
    """
    pages = fleet.metrics.pages or {name: _pages(place) for name, place in fleet.places().items()}
    found: dict[Machine, str] = {}
    for region in fleet.names:
        if fleet.regions[region].gpus and not pages.get(region, Pages()).gpu_servers:
            raise InputError("is missing", key=f"metrics.pages.{region}.gpu_servers")
    for region, known in pages.items():
        of_tiers: tuple[tuple[Tier, tuple[str, ...]], ...] = (("gpu", known.gpu_servers), ("edge", known.edges))
        for tier, urls in of_tiers:
            for url in urls:
                machine, page = _target(region, tier, url)
                if machine in found:  # several behind one address, told apart by path
                    machine = Machine(region, tier, machine.address + urlsplit(url).path)
                found[machine] = page
    return found


def _pages(place: Place) -> Pages:
    # An admin page is on its machine's loopback; the page of counters is for other machines.
    edge = f"http://{place.metrics}/metrics" if place.metrics else f"http://{place.admin}"
    return Pages(gpu_servers=tuple(f"http://{server}" for server in place.servers), edges=(edge,))


def _target(region: str, tier: Tier, url: str) -> tuple[Machine, str]:
    parts = urlsplit(url)
    # Not the whole URL: a password may be in it, and lines about machines go into logs.
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else str(parts.hostname)
    address = f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    return Machine(region, tier, address), url if parts.path else url + _PATHS[tier]
