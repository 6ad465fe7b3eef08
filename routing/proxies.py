"""The proxies of a fleet: edges, which are Envoys, and dispatchers, which are HAProxies. Their files and commands, and
how one is taken out before it stops: nobody new comes, and those who are there end.

<root>/<region>/edge/          bootstrap.yaml  endpoints.yaml  routes.yaml  runtime.yaml
<root>/<region>/dispatcher/    haproxy.cfg  dispatcher.lua      (dispatcher-2 and so on, where there are more)
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal, Protocol

import httpx

from .dispatcher.binary import HAProxy, find_haproxy
from .dispatcher.files import CONFIG, check, dispatcher_folder, write_dispatcher
from .envoy.binary import Envoy, find_envoy, validate
from .envoy.files import BOOTSTRAP, edge_folder, write_edge
from .errors import RoutingError
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


_ACTIVE = re.compile(r"^http\.edge\.downstream_rq_active: (\d+)$", re.MULTILINE)
_EVERY_S = 0.2


class Drained(Protocol):
    """A proxy that can be taken out: an edge, by `EdgeAdmin`, or a dispatcher, by its runtime socket."""

    def take_out(self) -> None:
        """Make its `/readyz` 503."""

    def in_flight(self) -> int:
        """Return how many requests it has."""


def drain(proxy: Drained, leave_s: float, limit_s: float) -> int:
    """Take a proxy out, give those who look at it time to leave, and wait for the requests in flight.

    Args:
        proxy: that is to stop.
        leave_s: time for load balancers and edges to see it. They may send requests until then, and these are served.
        limit_s: time for requests in flight, from then on.

    Returns:
        Requests that were still in flight at the end: 0, or the limit has passed.

    Raises:
        RoutingError: the proxy does not answer.
    """
    proxy.take_out()
    time.sleep(leave_s)
    end = time.monotonic() + limit_s
    while (left := proxy.in_flight()) and time.monotonic() < end:
        time.sleep(_EVERY_S)
    return left


class EdgeAdmin:
    """The admin page of an edge.

    Args:
        address: host and port.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._client = httpx.Client(base_url=f"http://{address}", timeout=5.0, trust_env=False)

    def take_out(self) -> None:
        self._ask("POST", "/healthcheck/fail")

    def in_flight(self) -> int:
        text = self._ask("GET", r"/stats?filter=^http\.edge\.downstream_rq_active$")
        return sum(int(count) for count in _ACTIVE.findall(text))

    def _ask(self, method: str, path: str) -> str:
        try:
            answer = self._client.request(method, path)
        except httpx.HTTPError as error:
            text = f"the admin page does not answer ({str(error) or type(error).__name__})"
            raise RoutingError(f"{self._address}: {text}") from None
        if answer.is_error:
            text = f"that is no admin page of Envoy: it answers {answer.status_code}"
            raise RoutingError(f"{self._address}: {text}")
        return answer.text
