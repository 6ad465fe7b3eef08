"""Where everything of a fleet on one machine is: its ports, its folders, and the fleet file that says so."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routing.data_plane import LAST_PORT, Certificate, MutualTls, Place, loopback_places, seen_from
from routing.errors import RoutingError
from routing.files import write_atomically, yaml_text
from routing.fleet import Fleet
from routing.schema import validated

CONTROL, PROXIES, LEDGERS = "control", "proxies", "ledgers"
FLEET = "fleet.yaml"


def _of_the_fleet(fleet: Fleet) -> int:
    """How many ports no region has: control loop, Prometheus, and what takes copies of requests."""
    return 2 + (fleet.data_plane.shadow is not None)


def ports_needed(fleet: Fleet) -> int:
    """How many ports in a row a fleet takes."""
    places = loopback_places(_gpus(fleet), 1024)
    return _of_the_fleet(fleet) + sum(4 + len(place.servers) for place in places.values())


@dataclass(frozen=True)
class Layout:
    """A fleet's places on this machine.

    Attributes:
        fleet: as it was given, but with places and pages of this machine.
        folder: of the fleet.
        control, prometheus: addresses.
    """

    fleet: Fleet
    folder: Path
    control: str
    prometheus: str

    @classmethod
    def of(cls, fleet: Fleet, folder: Path, first_port: int, base: Path, service_time_s: float | None) -> Layout:
        """Lay a fleet out.

        Args:
            fleet: any; where it says that its machines are is left aside.
            folder: of the fleet on this machine.
            first_port: of those that are reserved.
            base: folder that the paths of certificates and keys are seen from.
            service_time_s: mean of the stand-ins, whose only load is time; None: real servers.
        """
        places = loopback_places(_gpus(fleet), first_port + _of_the_fleet(fleet))
        content = _plain(fleet)
        plane = {
            "places": {name: _plain(place) for name, place in places.items()},
            "tls": _absolute(fleet.data_plane.tls, base),
            "mutual_tls": _absolute(fleet.data_plane.mutual_tls, base),
            "api_keys": fleet.data_plane.api_keys and str(seen_from(base, fleet.data_plane.api_keys)),
        }
        content["data_plane"] |= {key: value for key, value in plane.items() if value is not None}
        content["metrics"]["pages"] = {
            name: {
                "dispatchers": [f"http://{one.admin}" for one in place.dispatchers],
                "edges": [f"http://{place.admin}"],
            }
            for name, place in places.items()
        }
        content["metrics"].pop("prometheus", None)
        if service_time_s is not None:
            content["service_time_s"] = service_time_s
        control, prometheus, *more = (f"127.0.0.1:{first_port + i}" for i in range(_of_the_fleet(fleet)))
        if more:
            content["data_plane"]["shadow"]["receiver"] = more[0]
        return cls(validated(Fleet, content), folder, control, prometheus)

    @property
    def places(self) -> Mapping[str, Place]:
        """Where the proxies and servers of each region are."""
        return self.fleet.places()

    @property
    def scheme(self) -> str:
        """Of the edges."""
        return "https" if self.fleet.data_plane.tls else "http"

    def write_fleet_file(self) -> Path:
        """Write the fleet file for the programs of this machine."""
        path = self.folder / FLEET
        write_atomically(path, yaml_text(_plain(self.fleet)))
        return path

    def gpu_name(self, region: str, number: int) -> str:
        """Name of a GPU server; the first is number 1."""
        return f"{region}-{number}"


def _gpus(fleet: Fleet) -> dict[str, int]:
    return {name: region.gpus for name, region in fleet.regions.items()}


def _plain(model: Fleet | Place) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _absolute(found: Certificate | MutualTls | None, base: Path) -> dict[str, Any] | None:
    if found is None:
        return None
    content = found.model_dump(mode="json", exclude_none=True)
    return content | {key: str(seen_from(base, content[key])) for key in ("certificate", "key", "ca") if key in content}


FIRST_PORT = 21_000
_STEP = 50


@dataclass(frozen=True)
class Reservation:
    """Ports that are ours for as long as the file is open, here or in a process that was given it.

    Attributes:
        first, count: of the ports.
        file: descriptor of the locked file.
    """

    first: int
    count: int
    file: int

    def release(self) -> None:
        """Give them up."""
        os.close(self.file)


def reserve(count: int, base: int | None = None, folder: Path | None = None) -> Reservation:
    """Reserve ports on loopback.

    Args:
        count: how many, in a row.
        base: the first of them; None: the first that fit, from 21000 on.
        folder: where reservations are kept; None: one of this user, for the whole machine.

    Raises:
        RoutingError: a port is taken, or there are not so many.
    """
    home = _home() if folder is None else folder
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(home):
        taken = [*_reserved(home)]
        starts = range(FIRST_PORT, LAST_PORT + 2 - count, _STEP) if base is None else [base]
        for first in starts:
            if base is None and any(first < end and first + count > start for start, end in taken):
                continue
            problem = _problem(first, count, taken)
            if problem is None:
                return Reservation(first, count, _lock(home / f"{first}-{first + count}.ports"))
            if base is not None:
                raise RoutingError(f"{problem}; choose another --port-base, or leave it out")
    raise RoutingError(f"no {count} free ports in a row between {FIRST_PORT} and {LAST_PORT}; give --port-base")


def _home() -> Path:
    return Path(tempfile.gettempdir()) / f"stillmotion-ports-{os.getuid()}"


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One process at a time looks and reserves."""
    with (home / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _reserved(home: Path) -> Iterator[tuple[int, int]]:
    """First port, and the one after the last, of each reservation. Those that nobody holds any more are removed."""
    for path in home.glob("*.ports"):
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except BlockingIOError:
            first, _, end = path.stem.partition("-")
            yield int(first), int(end)
        finally:
            os.close(file)


def _lock(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _problem(first: int, count: int, taken: list[tuple[int, int]]) -> str | None:
    if first < 1024 or first + count - 1 > LAST_PORT:
        return f"ports {first} to {first + count - 1} are not all between 1024 and {LAST_PORT}"
    for port in range(first, first + count):
        if any(start <= port < end for start, end in taken):
            return f"port {port} is another fleet's"
        # By listening, not by connecting: what is bound and does not answer is taken as well.
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
                one.listen()
            except OSError as error:
                why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
                return f"port {port} {why}"
    return None
