"""The configuration of a dispatcher, from the settings of its fleet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path, PurePath

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ..data_plane import MutualTls, bind_address, host_and_port
from ..fleet import Fleet

_FOLDER = Path(__file__).parent
LUA = (_FOLDER / "dispatcher.lua").read_text(encoding="utf-8")
_HOLD_SHARE = 1 / 8
"""Of a job's time, that a server counts as busy after it refused one: about a step of an eight-step model, which a
server finishes before it notices that a client has left."""
_HOLD_MS = (20, 1000)
_LEAST_BUFFER = 32 * 2**10


@dataclass(frozen=True)
class Settings:
    """What of a dispatcher does not follow from its fleet.

    Attributes:
        region: where it is.
        address: where edges reach it.
        admin: address of its own pages.
        folder: of its files, as HAProxy sees it.
        socket: path of the runtime socket, as HAProxy sees it.
        servers: addresses of its GPU servers, where they are known.
        discovered: name and port, such as `gpu:3000`, by which HAProxy finds GPU servers; None: `servers` are all.
        candidate: the same for servers with another version of the model; None: they come by the runtime socket.
        size: of them that there are at most, where they are discovered.
        nameserver: address of the DNS server; None: those of /etc/resolv.conf.
        certificate: the dispatcher's own, and what it checks edges by; paths as HAProxy sees them. None: plain HTTP/2.
        emulate_latency: delay requests by the round trip to the region they come from, for a fleet on one machine.
    """

    region: str
    address: str
    admin: str
    folder: PurePath
    socket: PurePath
    servers: tuple[str, ...] = ()
    discovered: str | None = None
    candidate: str | None = None
    size: int = 0
    nameserver: str | None = None
    certificate: MutualTls | None = None
    emulate_latency: bool = False


def dispatcher_config(fleet: Fleet, settings: Settings) -> str:
    """Return the text of `haproxy.cfg`."""
    limits, mutual = fleet.data_plane.limits, settings.certificate
    wait_s, batch_wait_s = fleet.queue.bounds_s(fleet.service_time_s)
    spill_s, batch_spill_s = fleet.queue.spill_bounds_s(fleet.service_time_s)
    # Who was let in by the mean does not wait longer than the bound: those before it may take longer.
    queue_s = max(wait_s, batch_wait_s)
    sources = fleet.latencies(settings.region) if settings.emulate_latency else {}
    return _template().render(
        region=settings.region,
        threads=limits.dispatcher_threads,
        connections=limits.connections,
        socket=settings.socket,
        lua=settings.folder / "dispatcher.lua",
        service_ms=_ms(fleet.service_time_s),
        hold_ms=min(max(_ms(fleet.service_time_s * _HOLD_SHARE), _HOLD_MS[0]), _HOLD_MS[1]),
        buffer_bytes=max(_LEAST_BUFFER, (limits.headers_kb + 8) * 2**10),
        queue_ms=_ms(queue_s),
        deadline_ms=_ms(fleet.jobs.deadline_s),
        longest_ms=_ms(queue_s + fleet.jobs.deadline_s),
        wait_ms=_ms(wait_s),
        batch_wait_ms=_ms(batch_wait_s),
        spill_ms=_ms(spill_s),
        batch_spill_ms=_ms(batch_spill_s),
        bind=_bound(settings.address),
        admin=_bound(settings.admin),
        certificate=mutual.certificate if mutual else None,
        ca=mutual.ca if mutual else None,
        extra_del_ext=bool(mutual and mutual.certificate.endswith(".crt")),
        edge_name=mutual.edge_name if mutual else None,
        edge_name_hex=_dns_name_hex(mutual.edge_name) if mutual and mutual.edge_name else None,
        body_bytes=fleet.jobs.body_bytes,
        paths=fleet.jobs.paths,
        ready=fleet.jobs.ready,
        batch_clients=[_quoted(name) for name in fleet.queue.batch_clients],
        delays={name: _ms(fleet.latency(name, settings.region) / 1000) for name in sources if name != settings.region},
        servers=named(settings.servers),
        discovered=settings.discovered,
        candidate=settings.candidate,
        size=settings.size,
        nameserver=settings.nameserver,
    )


def named(servers: tuple[str, ...]) -> Mapping[str, str]:
    """Return the address of each GPU server by its name in HAProxy, which is the address without brackets."""
    return {server_name(server): server for server in servers}


def server_name(address: str) -> str:
    """Return a GPU server's name in HAProxy."""
    return "{}:{}".format(*host_and_port(address))


@cache
def _template() -> Template:
    # autoescape is for HTML; what goes into this file is numbers, names and addresses that were checked.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(_FOLDER), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template("haproxy.cfg.j2")


def _ms(seconds: float) -> int:
    return max(1, ceil(round(seconds * 1000, 6)))


def _bound(address: str) -> str:
    host, port = host_and_port(bind_address(address))
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _dns_name_hex(name: str) -> str:
    """Return a name as it stands among the alternative names of a certificate (RFC 5280: tag 0x82, length, text)."""
    text = name.encode("ascii")
    return bytes([0x82, len(text), *text]).hex().upper()


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'
