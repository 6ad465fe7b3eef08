"""What `kubernetes.yaml` says: where images are, who may reach what, how the fleet grows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ...console import tell
from ...data_plane import Address
from ...errors import InputError
from ...files import read_yaml
from ...metrics.settings import Url
from ...schema import Count, Items, Number, RegionName, Share, Strict, validated, wrong

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
        least: there always are so many in the region; the fleet's `gpus` are the most.
        busy_share: of its time that each is busy, when there are as many as there should be. Below the lowest
            threshold of the fleet: above that overflow leaves, and they never get busier.
    """

    least: Annotated[Count, Field(ge=1)]
    busy_share: Annotated[Share, Field(gt=0)] = 0.6


class RegionSettings(Strict):
    """One region's cluster.

    Attributes:
        edges: how many.
        edges_from: addresses that its edges have when they call other regions, by which these let them in.
        control: where other regions reach its control loop, if it has one.
        scaling: None: as many GPU servers as the fleet says.
        gpu_nodes: labels of nodes for GPU servers.
        annotations: of the Services of type LoadBalancer, by their name.
        storage_class: of the control loop's volume; None: the cluster's default.
    """

    edges: Annotated[Count, Field(ge=1, le=1000)] = 2
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
