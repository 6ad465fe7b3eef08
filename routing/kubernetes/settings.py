"""What `kubernetes.yaml` says: where images are, who may reach what, how the fleet grows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ..console import tell
from ..data_plane import Address, host_and_port, seen_from
from ..envoy.files import read_keys
from ..errors import InputError
from ..files import read_text, read_yaml
from ..fleet import Fleet
from ..metrics.settings import Url
from ..schema import Count, Items, Number, RegionName, Share, Strict, did_you_mean, validated, wrong

_IMAGE = re.compile(
    r"(?P<name>[a-z0-9]+(?:[._/:-]+[a-zA-Z0-9]+)*?)(?::(?P<tag>[A-Za-z0-9_][\w.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_SETTING = re.compile(r"STILLMOTION_[A-Z][A-Z_]*")


def _image(text: str) -> str:
    found = _IMAGE.fullmatch(text)
    if not found:
        raise wrong("", f"{text} is no image, such as registry.example.com/stillmotion:0.1.0")
    if not found["digest"] and found["tag"] in {None, "latest"}:
        raise wrong("", f"{text} may be another image tomorrow; give it a tag of its own, or a digest")
    return text


def _network(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError as error:
        raise wrong("", f"{text} is no network, such as 10.1.0.0/16 ({error})") from None


def _setting(name: str) -> str:
    if not _SETTING.fullmatch(name):
        raise wrong("", f"{name} is none of the settings of a GPU server, which begin with STILLMOTION_")
    return name


Image = Annotated[str, AfterValidator(_image)]
"""Name of an image with a tag or a digest."""
Network = Annotated[str, AfterValidator(_network)]
"""Addresses, as 10.1.0.0/16."""
SettingName = Annotated[str, AfterValidator(_setting)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]


def image_parts(text: str) -> dict[str, str]:
    """An `Image` as kustomize has it."""
    found = _IMAGE.fullmatch(text)
    assert found is not None
    parts = {"newName": found["name"]}
    if found["digest"]:
        return {**parts, "digest": found["digest"]}
    return {**parts, "newTag": found["tag"]}


class Images(Strict):
    """Images of the pods.

    Attributes:
        server: of GPU servers.
        routing: of proxies, agents and control loops.
    """

    server: Image
    routing: Image


class Scaling(Strict):
    """GPU servers by how busy they are.

    Attributes:
        least: there always are so many in the region; the fleet's `gpus` are the most. 0: all may go while nobody asks
            for more than `ACTIVATE` jobs, and others serve the region until the first has come back.
        busy_share: of its time that each is busy, when there are as many as there should be. Below the lowest
            threshold of the fleet: above that overflow leaves, and they never get busier.
        by_demand: servers come for what users of the region ask for, wherever that is computed (scale first), and not
            only for the jobs that it has, after some have left (offload first). Always so where `least` is 0.
    """

    least: Count
    busy_share: Annotated[Share, Field(gt=0)] = 0.6
    by_demand: bool = False


class RegionSettings(Strict):
    """One region's cluster.

    Attributes:
        edges: how many; at least, where there are `most_edges`.
        most_edges: as many as their processors need, up to so many; None: `edges`, always.
        edges_from: addresses that its edges have when they call other regions, by which these let them in.
        control: where other regions reach its control loop, if it has one.
        scaling: None: as many GPU servers as the fleet says.
        gpu_nodes: labels of nodes for GPU servers.
        annotations: of the Services of type LoadBalancer, by their name.
        storage_class: of the control loop's volume; None: the cluster's default.
    """

    edges: Annotated[Count, Field(ge=1, le=1000)] = 2
    most_edges: Annotated[Count, Field(ge=1, le=1000)] | None = None
    edges_from: Annotated[tuple[Network, ...], Items] = ()
    control: Address | None = None
    scaling: Scaling | None = None
    gpu_nodes: Mapping[Text, str] = {}
    annotations: Mapping[Literal["edge", "dispatcher", "control"], Mapping[Text, str]] = {}
    storage_class: Text | None = None


class KubernetesSettings(Strict):
    """A fleet's clusters, one for each region.

    Attributes:
        namespace: of all resources.
        images: of the pods.
        prometheus: that the control loops ask; it has the metrics of all regions.
        monitoring: namespace that may scrape, in each cluster.
        control: regions with a control loop, the preferred first.
        gpu_resource: name of a GPU among the resources of nodes.
        server: settings of GPU servers, by the name of their environment variable.
        cluster_domain: that names of Services end in; dispatchers find GPU servers by them.
        prometheus_operator: whether the Prometheus Operator is given what to scrape, and the rules.
        rollouts: whether Argo Rollouts gives GPU servers new versions of the model (docs/rollout.md).
        leave_s: in which load balancers notice that an edge or a dispatcher goes.
        regions: by name.
    """

    namespace: RegionName = "stillmotion"
    images: Images
    prometheus: Url
    monitoring: RegionName = "monitoring"
    control: Annotated[tuple[RegionName, ...], Items, Field(min_length=1)]
    gpu_resource: Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[a-zA-Z0-9._-]+$")] = "nvidia.com/gpu"
    server: Mapping[SettingName, str] = {}
    cluster_domain: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")] = "cluster.local"
    prometheus_operator: bool = False
    rollouts: bool = False
    leave_s: Annotated[Number, Field(le=600)] = 15.0
    regions: Annotated[Mapping[RegionName, RegionSettings], Field(min_length=1)]


def load_settings(path: Path) -> KubernetesSettings:
    """Read `kubernetes.yaml`.

    Raises:
        InputError: it cannot be read, or a key or value is wrong; the text names file, key and limit.
    """
    content = read_yaml(path)
    try:
        content = _without_front(content, path)
        return validated(KubernetesSettings, content)
    except InputError as error:
        raise error.within(path) from None


def _without_front(content: object, path: Path) -> object:
    """Content without the keys of the last release for a front that is not the project's edges."""
    gone = {"front", "gateway_class", "front_namespace"}
    if not isinstance(content, Mapping) or not gone & content.keys():
        return content
    if content.get("front", "edges") != "edges":
        text = f"{content['front']} is gone: its table could not follow the traffic; put it in front of the edges"
        raise InputError(text, key="front")
    for key in sorted(gone & content.keys()):
        tell(f"warning: {path}: {key} has no effect any more: the edges are the project's own; remove it")
    return {key: value for key, value in content.items() if key not in gone}


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
    if fleet.data_plane.shadow is not None and not settings.rollouts:
        raise InputError("wants rollouts: true in kubernetes.yaml: a judge takes the copies", key="data_plane.shadow")
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
    if region.most_edges is not None and region.most_edges < region.edges:
        raise InputError(f"{region.most_edges} is below edges ({region.edges})", key=f"regions.{name}.most_edges")
    if region.scaling is None:
        return
    key, least = f"regions.{name}.scaling", region.scaling.least
    if not gpus:
        raise InputError("the region has no GPUs", key=key)
    if least > gpus:
        raise InputError(f"{least} is more than the fleet's {gpus} GPUs of the region", key=f"{key}.least")
    others = [other for other in fleet.names if other != name and fleet.regions[other].gpus]
    kept = [settings.regions[other].scaling for other in others]
    if not least and all(one is not None and not one.least for one in kept):
        text = "is 0, and no other region has servers all the time that could serve meanwhile"
        raise InputError(text, key=f"{key}.least")
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
