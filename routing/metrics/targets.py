"""Which machines there are, and where their pages are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

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
    """Each machine, with the URL of its page.

    Raises:
        InputError: none is known, or those of some region are not.
    """
    found: dict[Machine, str] = {}
    if fleet.metrics.pages:
        for region in fleet.names:
            if fleet.regions[region].gpus and not fleet.metrics.pages.get(region, Pages()).gpu_servers:
                raise InputError("is missing", key=f"metrics.pages.{region}.gpu_servers")
    for region, pages in fleet.metrics.pages.items():
        of_tiers: tuple[tuple[Tier, tuple[str, ...]], ...] = (("gpu", pages.gpu_servers), ("edge", pages.edges))
        for tier, urls in of_tiers:
            for url in urls:
                machine, page = _target(region, tier, url)
                if machine in found:  # several behind one address, told apart by path
                    machine = Machine(region, tier, machine.address + urlsplit(url).path)
                found[machine] = page
    if not found:
        raise InputError("no machine to ask: give metrics.pages, metrics.prometheus or --prometheus", key="metrics")
    return found


def _target(region: str, tier: Tier, url: str) -> tuple[Machine, str]:
    parts = urlsplit(url)
    # Not the whole URL: a password may be in it, and lines about machines go into logs.
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else str(parts.hostname)
    address = f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    return Machine(region, tier, address), url if parts.path else url + _PATHS[tier]
