"""Where everything of a fleet on one machine is: its ports, its folders, and the fleet file that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routing.data_plane import Certificate, MutualTls, Place, loopback_places, seen_from
from routing.files import write_atomically
from routing.fleet import Fleet
from routing.schema import validated
from routing.yaml_text import yaml_text

CONTROL, PROXIES, LEDGERS = "control", "proxies", "ledgers"
FLEET = "fleet.yaml"
_OF_THE_FLEET = 2  # ports: control loop, Prometheus


def ports_needed(fleet: Fleet) -> int:
    """How many ports in a row a fleet takes."""
    places = loopback_places(_gpus(fleet), 1024)
    return _OF_THE_FLEET + sum(4 + len(place.servers) for place in places.values())


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
        places = loopback_places(_gpus(fleet), first_port + _OF_THE_FLEET)
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
        at = [f"127.0.0.1:{first_port + i}" for i in range(_OF_THE_FLEET)]
        return cls(validated(Fleet, content), folder, *at)

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
