"""That the settings fit the fleet, and that certificates and keys are there: all of it before anything is written."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from ...data_plane import host_and_port, seen_from
from ...envoy.files import read_keys
from ...errors import InputError
from ...files import read_text
from ...fleet import Fleet
from ...schema import did_you_mean
from .settings import KubernetesSettings

_PEM = "-----BEGIN "
_LONGEST = 63
_SECONDS = {"STILLMOTION_DEADLINE_S": 120.0, "STILLMOTION_SEND_S": 60.0}
"""Limits of a GPU server, with their defaults (`serving/settings.py`)."""


def check(fleet: Fleet, settings: KubernetesSettings) -> list[str]:
    """See that both files belong together.

    Returns:
        Notes: what is allowed, and should be known.

    Raises:
        InputError: with the key and the limit.
    """
    for name in settings.regions:
        if name not in fleet.regions:
            raise InputError(f"is none of the fleet's{did_you_mean(name, fleet.regions)}", key=f"regions.{name}")
    for name in fleet.names:
        if name not in settings.regions:
            raise InputError("is missing, and the fleet has it", key=f"regions.{name}")
        if len(f"dispatcher-{name}") > _LONGEST:
            raise InputError(f"names in Kubernetes have at most {_LONGEST} characters", key=f"regions.{name}")
    _check_places(fleet)
    _check_control(fleet, settings)
    for name in fleet.names:
        _check_region(fleet, settings, name)
    _check_times(fleet, settings)
    if fleet.data_plane.mutual_tls is None and len(fleet.regions) > 1:
        text = "requests go from region to region in plain text, and who has one of the addresses in edges_from"
        return [f"without data_plane.mutual_tls {text} can use the GPUs"]
    return []


def read_secrets(fleet: Fleet, base: Path) -> dict[str, dict[str, str]]:
    """Content of all files that are secret, by the name that their Secret will have, and by file.

    Args:
        fleet: with its data plane.
        base: folder that their paths are seen from: the fleet file's.

    Raises:
        InputError: one is missing, or no PEM file; with the key.
    """
    plane, found = fleet.data_plane, {}
    if plane.tls is not None:
        found["edge-tls"] = {
            "tls.crt": _pem(base, plane.tls.certificate, "data_plane.tls.certificate"),
            "tls.key": _pem(base, plane.tls.key, "data_plane.tls.key"),
        }
    if plane.mutual_tls is not None:
        found["peer-tls"] = {
            "ca.crt": _pem(base, plane.mutual_tls.ca, "data_plane.mutual_tls.ca"),
            "tls.crt": _pem(base, plane.mutual_tls.certificate, "data_plane.mutual_tls.certificate"),
            "tls.key": _pem(base, plane.mutual_tls.key, "data_plane.mutual_tls.key"),
        }
    if plane.api_keys is not None:
        try:
            read_keys(seen_from(base, plane.api_keys))
        except InputError as error:
            raise InputError(str(error), key="data_plane.api_keys") from None
    return found


def _pem(base: Path, path: str, key: str) -> str:
    where = seen_from(base, path)
    try:
        text = read_text(where)
    except InputError as error:
        raise InputError(str(error), key=key) from None
    if _PEM not in text:
        raise InputError(f"{where}: is no PEM file", key=key)
    return text


def _check_places(fleet: Fleet) -> None:
    places = fleet.data_plane.places
    if not places:
        raise InputError("is missing: the addresses of load balancers, by region", key="data_plane.places")
    taken: dict[str, str] = {}
    for name, place in places.items():
        for key, address in (
            ("edge", place.edge),
            *((f"dispatchers.{i}.address", one.address) for i, one in enumerate(place.dispatchers)),
        ):
            where = f"data_plane.places.{name}.{key}"
            host = ip_address(host_and_port(address)[0])
            if host.is_loopback or host.is_unspecified:
                raise InputError(f"{address} is not the address of a load balancer", key=where)
            if address in taken:
                raise InputError(f"{address} is {taken[address]} already", key=where)
            taken[address] = where
        for i, dispatcher in enumerate(place.dispatchers):
            if dispatcher.gpus is None:
                text = "names servers, and those of Kubernetes come and go; give `gpus`, how many there are at most"
                raise InputError(text, key=f"data_plane.places.{name}.dispatchers.{i}")


def _check_control(fleet: Fleet, settings: KubernetesSettings) -> None:
    for i, name in enumerate(settings.control):
        if name not in fleet.regions:
            raise InputError(
                f"{name} is none of the fleet's regions{did_you_mean(name, fleet.regions)}", key=f"control.{i}"
            )
        if name in settings.control[:i]:
            raise InputError(f"{name} is there twice", key=f"control.{i}")
        if settings.regions[name].control is None and len(fleet.regions) > 1:
            text = "is missing: other regions take the table from there"
            raise InputError(text, key=f"regions.{name}.control")


def _check_region(fleet: Fleet, settings: KubernetesSettings, name: str) -> None:
    region, gpus = settings.regions[name], fleet.regions[name].gpus
    if not region.edges_from and len(fleet.regions) > 1:
        text = "is missing: the addresses of its edges, without which other regions do not let them in"
        raise InputError(text, key=f"regions.{name}.edges_from")
    if region.scaling is None:
        return
    key, least = f"regions.{name}.scaling", region.scaling.least
    if not gpus:
        raise InputError("the region has no GPUs", key=key)
    if least > gpus:
        raise InputError(f"{least} is more than the fleet's {gpus} GPUs of the region", key=f"{key}.least")
    lowest = fleet.thresholds[0].load
    if region.scaling.busy_share >= lowest:
        text = (
            f"{region.scaling.busy_share:g} is not below the fleet's lowest threshold ({lowest:g}), above which "
            "overflow leaves: it would never grow"
        )
        raise InputError(text, key=f"{key}.busy_share")


def _check_times(fleet: Fleet, settings: KubernetesSettings) -> None:
    """A proxy must not give a job up before its server does."""
    limits = dict(_SECONDS)
    for name in _SECONDS.keys() & settings.server.keys():
        try:
            limits[name] = float(settings.server[name])
        except ValueError:
            raise InputError(f"{settings.server[name]} is no number of seconds", key=f"server.{name}") from None
    total, job_s = sum(limits.values()), fleet.jobs.deadline_s
    if total >= job_s:
        text = (
            f"a job may take {total:g} s there (deadline and sending), and a proxy gives it jobs.deadline_s, "
            f"{job_s:g} s"
        )
        raise InputError(text, key="server")
