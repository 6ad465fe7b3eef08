"""What is tested: the edges of a fleet, wherever it runs, and what its file says of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from laboratory.local.layout import FLEET
from laboratory.local.records import About
from routing.errors import InputError
from routing.fleet import Fleet, load_fleet
from routing.schema import did_you_mean

KEY_HEADER = "X-API-Key"
_LIMIT_S = 30.0
_LARGEST = 2**20  # bytes of a page


@dataclass(frozen=True)
class Deployment:
    """A fleet that runs.

    Attributes:
        fleet: as its file says that it should be.
        edges: URL without path, by region.
        control: URL of the control loop's pages; empty: not known.
        gpu_servers: URLs by region, of stand-ins on this machine; empty: elsewhere, or real ones.
        stand_ins: whether GPU servers take time and compute nothing.
    """

    fleet: Fleet
    edges: Mapping[str, str]
    control: str = ""
    gpu_servers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stand_ins: bool = False


def local_deployment(folder: Path) -> Deployment:
    """A fleet on this machine, by the folder that `routing fleet up` gave it.

    What the fleet should be is in the file that it was started from; the copy in its folder may have been tampered
    with, which is what a load test is there to find.

    Raises:
        InputError: there is no such fleet.
    """
    about = About.read(folder)
    if about is None:
        raise InputError(f"no fleet was started in {folder}: python -m routing fleet up --fleet FILE --dir {folder}")
    source = Path(about.fleet_file)
    fleet = load_fleet(source if source.is_file() else folder / FLEET)
    if about.service_time_s:
        fleet = fleet.model_copy(update={"service_time_s": about.service_time_s})
    stand_ins = about.servers == "stand-in"
    servers = {name: tuple(one.gpu_servers.values()) for name, one in about.regions.items()} if stand_ins else {}
    edges = {name: one.edge for name, one in about.regions.items()}
    return Deployment(fleet, edges, about.control, servers, stand_ins)


def deployment_by_file(path: Path, edges: Sequence[str], control: str = "") -> Deployment:
    """A fleet anywhere, by its file.

    Args:
        path: fleet file. Its `data_plane.places` say where edges are, where `edges` does not.
        edges: `REGION=URL` each.
        control: URL of the control loop's pages, or empty.

    Raises:
        InputError: a region has no edge, or one is given that cannot be used.
    """
    fleet = load_fleet(path)
    scheme = "https" if fleet.data_plane.tls else "http"
    found = {name: f"{scheme}://{place.edge}" for name, place in fleet.data_plane.places.items()}
    for text in edges:
        region, equals, url = text.partition("=")
        if not equals:
            raise InputError(f"--edge {text}: should be REGION=URL, such as us-east=https://animate.example.org")
        if region not in fleet.regions:
            raise InputError(f"--edge {text}: {region} is none of the regions{did_you_mean(region, fleet.regions)}")
        found[region] = checked_url(url, f"--edge {text}")
    if missing := [name for name in fleet.names if name not in found]:
        names = ", ".join(missing)
        raise InputError(f"{path}: no edge is known of {names}; give --edge {missing[0]}=URL")
    return Deployment(fleet, found, checked_url(control, "--control") if control else "")


def checked_url(text: str, what: str) -> str:
    """A URL of a machine, without path.

    Raises:
        InputError: it is none.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"} or parts.query:
        raise InputError(
            f"{what}: {text or 'nothing'} is no URL of a machine, such as https://animate.example.org:8443"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def unfit(deployment: Deployment, headers: Mapping[str, str]) -> Iterator[str]:
    """Why requests should not be sent to these edges at all, if so.

    Args:
        deployment: whose edges are asked for pages of theirs.
        headers: an API key, or none.
    """
    for region, url in deployment.edges.items():
        status, text = ask(f"{url}/livez", headers)
        if status == 0:
            yield f"the edge of {region} at {url} cannot be reached ({text})"
            continue
        if status != 200 or text.strip() != "alive":
            yield f"{url} is no edge of stillmotion: /livez says {status} {text.strip()[:40]!r}"
            continue
        status, text = ask(f"{url}/docs.json", headers)
        if status in {401, 403}:
            yield f"the edge of {region} at {url} wants an API key: set STILLMOTION_API_KEY"
        elif status == 200 and not _is_ours(text):
            yield f"{url} is no edge of stillmotion: its /docs.json describes something else"


def ask(url: str, headers: Mapping[str, str] | None = None, limit_s: float = _LIMIT_S) -> tuple[int, str]:
    """Status and text of a page; status 0 and why, where there was no whole answer within the limit."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return 0, "is no URL"
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=limit_s)
    late, too_late = threading.Event(), f"no whole answer within {limit_s:g} s"

    def end(opened: socket.socket) -> None:
        late.set()
        with contextlib.suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)

    timer = None
    try:
        connection.connect()
        # The time limit of a socket is for each of its reads: who sends a byte now and then would hold us for ever.
        timer = threading.Timer(limit_s, end, [connection.sock])
        timer.daemon = True
        timer.start()
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        text = response.read(_LARGEST).decode("utf-8", errors="replace")
        return (0, too_late) if late.is_set() else (response.status, text)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return 0, too_late if late.is_set() else str(reason)
    finally:
        if timer is not None:
            timer.cancel()
        connection.close()


def _is_ours(text: str) -> bool:
    try:
        content = json.loads(text)
        return str(content["info"]["title"]).startswith("stillmotion")
    except (ValueError, KeyError, TypeError):
        return False
