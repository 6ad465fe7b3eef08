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
from .schema import Count, Items, Positive, RegionName, Share, Strict, did_you_mean, wrong

LAST_PORT = 32_767
"""Above it the kernel takes ports for outgoing connections, and a listener may find its own taken."""
_EDGE_ADMIN, _INGRESS_ADMIN = 9901, 9902  # Envoy's usual one, and the next


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


class Ingress(Strict):
    """The way into a region, or into a part of its GPU servers.

    Attributes:
        address: where edges reach it.
        servers: GPU servers behind it. No other ingress has them: two that share servers send requests to
            busy ones (29 % fail at 70 % load, where one fails 6 %).
        gpus: in place of `servers`, where these come and go: the most that there will be. Whoever starts them
            writes who there is (`routing.envoy.live.write_servers`, `python -m routing follow`).
        admin: Envoy's own pages, on a loopback address.
        metrics: where a Prometheus of another machine reads its counters (`/metrics`); None: nowhere.
    """

    address: Address
    servers: Annotated[tuple[Address, ...], Items] = ()
    gpus: Annotated[Count, Field(ge=1)] | None = None
    admin: Address = f"127.0.0.1:{_INGRESS_ADMIN}"
    metrics: Address | None = None

    @property
    def size(self) -> int:
        """GPU servers behind it, at most."""
        return len(self.servers) if self.gpus is None else self.gpus

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
        admin, metrics: of the edge; see `Ingress`.
        ingresses: none for a region that has only users.
    """

    edge: Address
    admin: Address = f"127.0.0.1:{_EDGE_ADMIN}"
    metrics: Address | None = None
    ingresses: Annotated[tuple[Ingress, ...], Items] = ()

    @property
    def servers(self) -> tuple[str, ...]:
        """All GPU servers of the region."""
        return tuple(server for ingress in self.ingresses for server in ingress.servers)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, address in (("admin", self.admin), *((f"ingresses.{i}.admin", one.admin) for i, one in self._each())):
            if not ip_address(host_and_port(address)[0]).is_loopback:
                raise wrong(key, f"{address} can be reached from elsewhere, and who reaches it can stop the proxy")
        found: dict[str, str] = {}
        for i, ingress in self._each():
            for j, server in enumerate(ingress.servers):
                key = f"ingresses.{i}.servers.{j}"
                if server in found:
                    raise wrong(key, f"{server} is {found[server]} already; each server has one ingress")
                found[server] = key
        return self

    def _each(self) -> list[tuple[int, Ingress]]:
        return list(enumerate(self.ingresses))


class Limits(Strict):
    """What a proxy puts up with.

    Attributes:
        connections: of users, at once; further ones are closed.
        heap_mb: memory of one proxy. An edge keeps a request's picture until its answer begins, so it needs
            requests in flight x size of a picture, and as much again.
        body_mb: of a request. The service takes 16 MiB of picture and a little text.
        response_mb: of an answer that an edge holds for a slow reader, so that its GPU counts as free again.
        headers_kb: of a request.
        upload_s: in which a request must have arrived at an edge. No GPU waits for it meanwhile.
        job_s: from a GPU server's first byte of a request to its last byte of the answer: its deadline
            (120 s), the step that overruns it, and 60 s to send.
        edge_threads: of an edge. An ingress has one: two would pick the same GPU at times.
    """

    connections: Annotated[Count, Field(ge=1)] = 10_000
    heap_mb: Annotated[Count, Field(ge=64)] = 2048
    body_mb: Annotated[Count, Field(ge=1, le=1024)] = 17
    response_mb: Annotated[Count, Field(ge=1, le=1024)] = 8
    headers_kb: Annotated[Count, Field(ge=1, le=8192)] = 32
    upload_s: Positive = 60.0
    job_s: Positive = 200.0
    edge_threads: Annotated[Count, Field(ge=1, le=256)] = 2


class Certificate(Strict):
    """A certificate chain and its private key, PEM files. Envoy takes new ones while it runs.

    Paths are seen from the fleet file.
    """

    certificate: str = Field(min_length=1)
    key: str = Field(min_length=1)


class MutualTls(Certificate):
    """What edges and ingresses show each other, and check.

    Attributes:
        ca: PEM file of the authority that signs both; one of your own, since who has a certificate of it may
            send requests to GPUs.
        edge_name, ingress_name: DNS names that their certificates must carry; None: any of this authority.
    """

    ca: str = Field(min_length=1)
    edge_name: str | None = None
    ingress_name: str | None = None


def _collector(text: str) -> str:
    host, _, port = text.rpartition(":")
    named = re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\]", host)
    if not named or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise wrong("", f"{text} is no name or address with a port, such as otel-collector.monitoring.svc:4318")
    return text


class Tracing(Strict):
    """Traces of requests, by OpenTelemetry: OTLP over HTTP, `POST /v1/traces`.

    Attributes:
        collector: name or address, and port, of what takes them.
        share: of the requests at an edge. Who is traced there is traced all the way.
    """

    collector: Annotated[str, AfterValidator(_collector)]
    share: Share = 0.01

    @property
    def url(self) -> str:
        """Where traces are sent."""
        return f"http://{self.collector}/v1/traces"


class DataPlane(Strict):
    """Proxies of a fleet.

    Attributes:
        places: by region; without any all are on this machine, on loopback ports from `first_port` on.
        first_port: see above.
        limits: of each proxy.
        tls: between users and edges; None: plain HTTP.
        mutual_tls: between edges and ingresses; None: plain, for networks that are private.
        api_keys: YAML file, `client name: key`; None: who reaches an edge may use it.
        access_log: edges write a line of JSON for each request to their standard output.
        tracing: where traces are sent; None: nowhere.
    """

    places: Mapping[RegionName, Place] = {}
    first_port: Annotated[Count, Field(ge=1024, le=LAST_PORT)] = 21_000
    limits: Limits = Limits()
    tls: Certificate | None = None
    mutual_tls: MutualTls | None = None
    api_keys: Annotated[str, Field(min_length=1)] | None = None
    access_log: bool = True
    tracing: Tracing | None = None

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
            if (servers := sum(ingress.size for ingress in self.places[name].ingresses)) != count:
                key = f"data_plane.places.{name}.ingresses"
                raise wrong(key, f"have {servers} servers, and the region has {count} GPUs")


def loopback_places(gpus: Mapping[str, int], first_port: int) -> dict[str, Place]:
    """All of a fleet on this machine: region by region an edge, its admin, an ingress, its admin, GPU servers.

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
        edge, admin, ingress, ingress_admin, *servers = (f"127.0.0.1:{port + i}" for i in range(4 + count))
        behind: dict[str, Any] = {"address": ingress, "servers": servers, "admin": ingress_admin}
        ingresses = [behind] if count else []
        places[name] = Place.model_validate({"edge": edge, "admin": admin, "ingresses": ingresses})
        port += 4 + count
    return places


def seen_from(folder: Path, path: str) -> Path:
    """A path of the fleet file, as other programs can use it."""
    return (folder / path).resolve()
