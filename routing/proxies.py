"""The proxies of a fleet: edges, which are Envoys, and dispatchers, which are HAProxies. Their files and commands.

<root>/<region>/edge/          bootstrap.yaml  endpoints.yaml  routes.yaml  runtime.yaml
<root>/<region>/dispatcher/    haproxy.cfg  dispatcher.lua      (dispatcher-2 and so on, where there are more)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from .dispatcher.binary import HAProxy, find_haproxy
from .dispatcher.files import CONFIG, check, dispatcher_folder, write_dispatcher
from .envoy.binary import Envoy, find_envoy, validate
from .envoy.files import BOOTSTRAP, edge_folder, write_edge
from .fleet import Fleet
from .table import RoutingTable


@dataclass(frozen=True)
class Proxy:
    """One proxy of a fleet.

    Attributes:
        region: where it is.
        role: what it is.
        folder: of its files.
        threads: that it is started with; a dispatcher's are in its configuration.
    """

    region: str
    role: Literal["edge", "dispatcher"]
    folder: Path
    threads: int = 1

    @property
    def config(self) -> Path:
        """The file that the proxy is started with."""
        return self.folder / (BOOTSTRAP if self.role == "edge" else CONFIG)


@dataclass(frozen=True)
class Programs:
    """The programs that proxies are."""

    envoy: Envoy
    haproxy: HAProxy

    @classmethod
    def find(cls) -> Programs:
        """Return those that are installed.

        Raises:
            RoutingError: one is missing, or cannot do what is needed; says what to do.
        """
        return cls(find_envoy(), find_haproxy())

    @property
    def versions(self) -> dict[str, str]:
        """Version of each program, by its name."""
        return {"envoy": self.envoy.version, "haproxy": self.haproxy.version}

    def command(self, proxy: Proxy) -> list[str]:
        """Return the arguments that run a proxy in the foreground."""
        if proxy.role == "edge":
            return self.envoy.command(proxy.config, threads=proxy.threads)
        return self.haproxy.command(proxy.config)

    def check(self, proxies: Iterable[Proxy]) -> None:
        """Have each program check the files of its proxies.

        Raises:
            RoutingError: some are refused, with the folder and the program's words.
        """
        for proxy in proxies:
            if proxy.role == "edge":
                validate(self.envoy, proxy.folder)
            else:
                check(self.haproxy, proxy.folder)


def write_fleet(
    root: Path,
    fleet: Fleet,
    table: RoutingTable,
    *,
    base: Path = Path(),
    seen_at: PurePath | None = None,
    emulate_latency: bool = False,
) -> list[Proxy]:
    """Write all files of a fleet. Those that are as they were are left alone, so that proxies have nothing to do.

    Args:
        root: folder to write to.
        fleet: with its data plane.
        table: of this fleet.
        base: folder that the paths of certificates and keys are seen from: the fleet file's.
        seen_at: where the proxies will find `root`; None: where it is.
        emulate_latency: dispatchers delay requests by the round trip to where they come from.

    Returns:
        The proxies, each region's edge first.

    Raises:
        RoutingError: a file cannot be written, or API keys cannot be read.
    """
    seen = Path(seen_at or root.resolve())
    proxies: list[Proxy] = []
    for region, place in fleet.places().items():
        folder = edge_folder(root, region)
        write_edge(folder, fleet, region, table, base=base, seen_at=edge_folder(seen, region))
        proxies.append(Proxy(region, "edge", folder, fleet.data_plane.limits.edge_threads))
        for number, dispatcher in enumerate(place.dispatchers, start=1):
            folder, at = dispatcher_folder(root, region, number), dispatcher_folder(seen, region, number)
            write_dispatcher(folder, fleet, region, dispatcher, base=base, seen_at=at, emulate_latency=emulate_latency)
            proxies.append(Proxy(region, "dispatcher", folder))
    return proxies
