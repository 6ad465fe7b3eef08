"""What `fleet.yaml` says of its proxies: where they stand, what they put up with, who may use them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from .errors import InputError
from .jobs import RateLimit
from .schema import Count, Items, Positive, RegionName, Share, Strict, did_you_mean, wrong

LAST_PORT = 32_767
"""Above it the kernel takes ports for outgoing connections, and a listener may find its own taken."""
_EDGE_ADMIN, _DISPATCHER_ADMIN = 9901, 9902  # Envoy's usual one, and the next


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    try:
        # Envoy takes no names in the files that tell it of endpoints while it runs.
        ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise _wrong_address(text) from None
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise _wrong_address(text)
    return text


def _wrong_address(text: str) -> PydanticCustomError:
    return wrong("", f"{text} is no IP address with a port, such as 10.1.0.5:8443 or [fd00::5]:8443")


Address = Annotated[str, AfterValidator(_address)]
"""IP address and port, as text."""


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of an `Address`."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def bind_address(address: str) -> str:
    """Return what a proxy listens on so that it can be reached at `address`.

    Elsewhere than on loopback it is all interfaces, since a load balancer or a container may own the address itself.
    """
    host, port = host_and_port(address)
    if host.startswith("127.") or host == "::1":
        return address
    return f"[::]:{port}" if ":" in host else f"0.0.0.0:{port}"


class Dispatcher(Strict):
    """The way into a region, or into a part of its GPU servers: it keeps their queue.

    Attributes:
        address: where edges reach it.
        servers: GPU servers behind it. No other dispatcher has them: two that share servers send jobs to busy ones.
        gpus: in place of `servers`, where these come and go: the most that there will be. On Kubernetes the
            dispatcher finds them by name.
        admin: where it tells of itself: `/metrics`, which the control loop and Prometheus read, `/livez`, `/readyz`.
            Nothing there changes it, but it gives jobs to idle GPUs (`routing.rollout.shadow`), and others than the
            operator should not reach it. Left out: the host of `address`, with port 9902.
    """

    address: Address
    servers: Annotated[tuple[Address, ...], Items] = ()
    gpus: Annotated[Count, Field(ge=1)] | None = None
    admin: Address

    @property
    def size(self) -> int:
        """GPU servers behind it, at most."""
        return len(self.servers) if self.gpus is None else self.gpus

    @model_validator(mode="before")
    @classmethod
    def _admin_beside_address(cls, content: object) -> object:
        if isinstance(content, dict) and "admin" not in content and isinstance(content.get("address"), str):
            host, _, _ = content["address"].rpartition(":")
            return content | {"admin": f"{host}:{_DISPATCHER_ADMIN}"}
        return content

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.gpus is not None and self.servers:
            raise wrong("gpus", "counts servers that come and go, and there are `servers` as well; give one of both")
        if self.gpus is None and "servers" not in self.model_fields_set:
            raise wrong("servers", "is missing; or give `gpus`, where they come and go")
        return self


class Place(Strict):
    """Where the proxies of a region are.

    Attributes:
        edge: where its users reach it.
        admin: the edge's own pages, on a loopback address: who reaches them can take it out of service.
        metrics: where a Prometheus of another machine reads the edge's counters (`/metrics`); None: nowhere.
        dispatchers: none for a region that has only users.
    """

    edge: Address
    admin: Address = f"127.0.0.1:{_EDGE_ADMIN}"
    metrics: Address | None = None
    dispatchers: Annotated[tuple[Dispatcher, ...], Items] = ()

    @property
    def servers(self) -> tuple[str, ...]:
        """All GPU servers of the region."""
        return tuple(server for dispatcher in self.dispatchers for server in dispatcher.servers)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not ip_address(host_and_port(self.admin)[0]).is_loopback:
            raise wrong("admin", f"{self.admin} can be reached from elsewhere, and who reaches it can stop the proxy")
        found: dict[str, str] = {}
        for i, dispatcher in enumerate(self.dispatchers):
            for j, server in enumerate(dispatcher.servers):
                key = f"dispatchers.{i}.servers.{j}"
                if server in found:
                    raise wrong(key, f"{server} is {found[server]} already; each server has one dispatcher")
                found[server] = key
        for i, dispatcher in enumerate(self.dispatchers):
            if dispatcher.admin in {one.admin for one in self.dispatchers[:i]}:
                raise wrong(f"dispatchers.{i}.admin", f"{dispatcher.admin} is another dispatcher's; give each its own")
        return self


class Limits(Strict):
    """What a proxy puts up with.

    Attributes:
        connections: of users, at once; further ones are closed.
        heap_mb: memory of an edge. It keeps a request's body until its answer begins, so it
            needs requests in flight x size of a body, and as much again.
        response_mb: of an answer that an edge holds for a slow reader, so that its GPU counts as free again.
        headers_kb: of a request.
        upload_s: in which a request must have arrived at an edge. No GPU waits for it meanwhile.
        edge_threads: of an edge.
        dispatcher_threads: of a dispatcher. Two threads that choose a server at the same moment may choose the same
            one, and give a GPU a second job, which it refuses: 22 of 960 jobs, and none with one thread.
    """

    connections: Annotated[Count, Field(ge=1)] = 10_000
    heap_mb: Annotated[Count, Field(ge=64)] = 2048
    response_mb: Annotated[Count, Field(ge=1, le=1024)] = 8
    headers_kb: Annotated[Count, Field(ge=1, le=8192)] = 32
    upload_s: Positive = 60.0
    edge_threads: Annotated[Count, Field(ge=1, le=256)] = 2
    dispatcher_threads: Annotated[Count, Field(ge=1, le=64)] = 1


class Certificate(Strict):
    """A certificate chain and its private key, PEM files. Envoy takes new ones while it runs.

    Paths are seen from the fleet file.
    """

    certificate: str = Field(min_length=1)
    key: str = Field(min_length=1)


class MutualTls(Certificate):
    """What edges and dispatchers show each other, and check.

    Attributes:
        ca: PEM file of the authority that signs both; one of your own, since who has a certificate of it may
            send requests to GPUs.
        edge_name, dispatcher_name: DNS names that their certificates must carry; None: any of this authority.
    """

    ca: str = Field(min_length=1)
    edge_name: str | None = None
    dispatcher_name: str | None = None


def _collector(text: str) -> str:
    host, _, port = text.rpartition(":")
    named = re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\]", host)
    if not named or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise wrong("", f"{text} is no name or address with a port, such as otel-collector.monitoring.svc:4318")
    return text


NamedAddress = Annotated[str, AfterValidator(_collector)]
"""Name or IP address, and port, as text."""


class Tracing(Strict):
    """Traces of requests, by OpenTelemetry: OTLP over HTTP, `POST /v1/traces`.

    Attributes:
        collector: name or address, and port, of what takes them.
        share: of the requests at an edge. Who is traced there is traced all the way.
    """

    collector: NamedAddress
    share: Share = 0.01

    @property
    def url(self) -> str:
        """Where traces are sent."""
        return f"http://{self.collector}/v1/traces"


class ShadowTraffic(Strict):
    """Copies of users' requests for a model that proves itself (docs/rollout.md).

    Attributes:
        share: of the jobs at an edge that are copied.
        receiver: name or address, and port, of what takes copies. Nobody has to be there. Left out: this machine.
    """

    share: Share = 0.05
    receiver: NamedAddress = "127.0.0.1:9907"


class DataPlane(Strict):
    """Proxies of a fleet.

    Attributes:
        places: by region; without any all are on this machine, on loopback ports from `first_port` on.
        first_port: see above.
        limits: of each proxy.
        tls: between users and edges; None: plain HTTP.
        mutual_tls: between edges and dispatchers; None: plain, for networks that are private.
        api_keys: YAML file, `client name: key`; None: who reaches an edge may use it.
        access_log: edges write a line of JSON for each request to their standard output.
        tracing: where traces are sent; None: nowhere.
        shadow: copies of users' requests; None: none.
        rate_limit: of each API key at an edge; None: none.
    """

    places: Mapping[RegionName, Place] = {}
    first_port: Annotated[Count, Field(ge=1024, le=LAST_PORT)] = 21_000
    limits: Limits = Limits()
    tls: Certificate | None = None
    mutual_tls: MutualTls | None = None
    api_keys: Annotated[str, Field(min_length=1)] | None = None
    access_log: bool = True
    tracing: Tracing | None = None
    shadow: ShadowTraffic | None = None
    rate_limit: RateLimit | None = None

    @model_validator(mode="after")
    def _limits_are_of_keys(self) -> Self:
        if self.rate_limit is not None and self.api_keys is None:
            raise wrong("rate_limit", "is for each API key; give api_keys too")
        return self

    def check(self, gpus: Mapping[str, int]) -> None:
        """See that the places are of these regions, with as many servers as they have GPUs.

        Raises:
            PydanticCustomError: with the key.
        """
        for name in self.places:
            if name not in gpus:
                raise wrong(f"data_plane.places.{name}", f"is none of the regions{did_you_mean(name, gpus)}")
        if not self.places:
            return
        for name, count in gpus.items():
            if name not in self.places:
                raise wrong(f"data_plane.places.{name}", "is missing; give the places of all regions, or of none")
            if (servers := sum(one.size for one in self.places[name].dispatchers)) != count:
                key = f"data_plane.places.{name}.dispatchers"
                raise wrong(key, f"have {servers} servers, and the region has {count} GPUs")


def loopback_places(gpus: Mapping[str, int], first_port: int) -> dict[str, Place]:
    """All of a fleet on this machine: region by region an edge, its admin, a dispatcher, its admin, GPU servers.

    Raises:
        InputError: there are not enough ports below the kernel's own.
    """
    needed = sum(4 + count for count in gpus.values())
    if first_port + needed - 1 > LAST_PORT:  # before ports are given out that there are not
        text = f"{needed} ports from {first_port} on do not end by {LAST_PORT}"
        raise InputError(f"{text}; give the places of this fleet", key="data_plane.first_port")
    places: dict[str, Place] = {}
    port = first_port
    for name, count in gpus.items():
        edge, admin, dispatcher, its_admin, *servers = (f"127.0.0.1:{port + i}" for i in range(4 + count))
        behind: dict[str, Any] = {"address": dispatcher, "servers": servers, "admin": its_admin}
        dispatchers = [behind] if count else []
        places[name] = Place.model_validate({"edge": edge, "admin": admin, "dispatchers": dispatchers})
        port += 4 + count
    return places


def seen_from(folder: Path, path: str) -> Path:
    """A path of the fleet file, as other programs can use it."""
    return (folder / path).resolve()
