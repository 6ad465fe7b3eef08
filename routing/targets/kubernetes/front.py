"""What stands in front of the dispatchers in place of our edges: Istio, or a Gateway of Gateway API."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from ...data_plane import host_and_port
from ...errors import InputError
from ...fleet import Fleet
from ...table import RoutingTable
from .. import gateway_api, istio
from ..manifests import Manifest, Place
from .place import EDGES_PORT
from .settings import KubernetesSettings

EDGES, ISTIO, GATEWAY_API = "edges", "istio", "gateway-api"


def check_front(fleet: Fleet, settings: KubernetesSettings) -> list[str]:
    """See that nothing is asked for that only the project's own edges do.

    Returns:
        Notes: what the front does otherwise.

    Raises:
        InputError: with the key.
    """
    if settings.front == EDGES:
        return []
    plane = fleet.data_plane
    what = f"is for the project's edges, and front is {settings.front}"
    if plane.mutual_tls is not None:
        raise InputError(f"{what}; let that encrypt between the clusters", key="data_plane.mutual_tls")
    if plane.api_keys is not None:
        raise InputError(f"{what}; let that check keys", key="data_plane.api_keys")
    if plane.tls is not None and settings.front == ISTIO:
        raise InputError(f"{what}; give the certificate to the gateway of the mesh", key="data_plane.tls")
    if settings.front_namespace is None:
        raise InputError("is missing: the namespace whose pods may reach dispatchers", key="front_namespace")
    found = istio.notes(fleet) if settings.front == ISTIO else gateway_api.notes(fleet)
    return [*found, "without edges there is no demand for a control loop to see: the table stays as it is rendered"]


def manifests(fleet: Fleet, table: RoutingTable, settings: KubernetesSettings, region: str) -> list[Manifest]:
    """Resources of the front in a region's cluster."""
    place = Place(settings.namespace, EDGES_PORT)
    if settings.front == ISTIO:
        return istio.manifests(fleet, table, place)
    found = [_gateway(fleet, settings, region), *gateway_api.manifests(fleet, table, place, region)]
    for name in fleet.names:
        found += _service(fleet, name)
    return found


def _gateway(fleet: Fleet, settings: KubernetesSettings, region: str) -> Manifest:
    host, port = host_and_port(fleet.places()[region].edge)
    listener: dict[str, Any] = {"name": "users", "port": port, "protocol": "HTTP"}
    if fleet.data_plane.tls is not None:
        listener |= {"protocol": "HTTPS", "tls": {"mode": "Terminate", "certificateRefs": [{"name": "edge-tls"}]}}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": f"edge-{region}"},
        "spec": {
            "gatewayClassName": settings.gateway_class,
            "addresses": [{"type": "IPAddress", "value": host}],
            "listeners": [listener],
        },
    }


def _service(fleet: Fleet, region: str) -> list[Manifest]:
    """A region's dispatchers, by the addresses of their load balancers."""
    name = f"dispatcher-{region}"
    found: list[Manifest] = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            # HTTP/2, as between edges and dispatchers: a refused upload ends a stream and not a connection.
            "spec": {"ports": [{"name": "edges", "port": EDGES_PORT, "appProtocol": "kubernetes.io/h2c"}]},
        }
    ]
    for number, dispatcher in enumerate(fleet.places()[region].dispatchers, start=1):
        host, port = host_and_port(dispatcher.address)
        found.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": f"{name}-{number}", "labels": {"kubernetes.io/service-name": name}},
                "addressType": f"IPv{ip_address(host).version}",
                "ports": [{"name": "edges", "port": port, "appProtocol": "kubernetes.io/h2c"}],
                "endpoints": [{"addresses": [host], "conditions": {"ready": True}}],
            }
        )
    return found
