"""Istio and Gateway API in the place of the project's edges."""

import pytest

from .conftest import REGIONS
from .test_kubernetes import of_kind, pods, selected
from .test_network import Network


@pytest.fixture(params=["istio", "gateway-api"])
def front(request, operator):
    """An operator who has one of both."""
    operator.settings |= {"front": request.param, "front_namespace": "gateways"}
    for name in ("tls", "mutual_tls", "api_keys"):
        operator.fleet["data_plane"].pop(name)
    return operator


@pytest.mark.slow
def test_overlays_are_what_their_schemas_take(front, kustomize, check):
    assert front.render() == 0
    for region in REGIONS:
        resources = kustomize(front.out / region)
        for one in resources:
            check(one)
        assert "edge" not in of_kind(resources, "Deployment")
        assert "control" not in of_kind(resources, "Deployment")
        network = Network(resources)
        gateway = {"namespace": "gateways", "labels": {"app": "gateway"}}
        for name in network.pods:
            assert network.allows(gateway, name, 8444) == name.startswith("ingress")
            assert not network.allows({**gateway, "namespace": "default"}, name, 8444)


def test_a_gateway_has_the_ingresses_of_all_regions(operator, kustomize):
    operator.settings |= {"front": "gateway-api", "front_namespace": "gateways", "gateway_class": "eg"}
    for name in ("mutual_tls", "api_keys"):
        operator.fleet["data_plane"].pop(name)
    assert operator.render() == 0
    resources = kustomize(operator.out / "sa-east")
    (gateway,) = of_kind(resources, "Gateway").values()
    assert gateway["spec"]["gatewayClassName"] == "eg"
    (listener,) = gateway["spec"]["listeners"]
    assert (listener["protocol"], listener["port"]) == ("HTTPS", 443)
    assert listener["tls"]["certificateRefs"][0]["name"] in of_kind(resources, "Secret")
    (route,) = of_kind(resources, "HTTPRoute").values()
    assert route["spec"]["parentRefs"] == [{"name": gateway["metadata"]["name"]}]
    services = of_kind(resources, "Service")
    slices = of_kind(resources, "EndpointSlice").values()
    for rule in route["spec"]["rules"]:
        for backend in rule["backendRefs"]:
            ports = {port["port"] for port in services[backend["name"]]["spec"]["ports"]}
            assert backend["port"] in ports
    addresses = {}
    for one in slices:
        name = one["metadata"]["labels"]["kubernetes.io/service-name"]
        addresses.setdefault(name, set()).update(*(end["addresses"] for end in one["endpoints"]))
    assert addresses == {"ingress-us-east": {"10.1.0.11", "10.1.0.12"}, "ingress-eu-west": {"10.2.0.11"}}


def test_in_a_mesh_one_name_stands_for_all_ingresses_of_a_region(operator, kustomize):
    operator.settings |= {"front": "istio", "front_namespace": "istio-system"}
    for name in ("tls", "mutual_tls", "api_keys"):
        operator.fleet["data_plane"].pop(name)
    assert operator.render() == 0
    resources = kustomize(operator.out / "us-east")
    service = of_kind(resources, "Service")["ingress"]
    found = {
        name
        for name, pod in pods(resources).items()
        if selected(service["spec"]["selector"], pod["metadata"]["labels"])
    }
    assert found == {"ingress", "ingress-2"}
    (rule,) = of_kind(resources, "DestinationRule").values()
    assert rule["spec"]["host"] == "ingress.stillmotion.svc.cluster.local"
    (routes,) = of_kind(resources, "VirtualService").values()
    ports = {route["destination"]["port"]["number"] for one in routes["spec"]["http"] for route in one["route"]}
    assert ports == {port["port"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize(
    ("front", "kept", "text"),
    [
        ("istio", "tls", "data_plane.tls: is for the project's edges, and front is istio"),
        ("istio", "mutual_tls", "data_plane.mutual_tls: is for the project's edges"),
        ("gateway-api", "api_keys", "data_plane.api_keys: is for the project's edges"),
        ("gateway-api", None, "front_namespace: is missing"),
        ("nginx", None, "front: should be 'edges', 'istio' or 'gateway-api'"),
    ],
)
def test_what_only_the_edges_do_is_refused(operator, capsys, front, kept, text):
    operator.settings |= {"front": front} | ({"front_namespace": "gateways"} if kept else {})
    for name in {"tls", "mutual_tls", "api_keys"} - {kept}:
        operator.fleet["data_plane"].pop(name)
    assert operator.render() == 2
    assert text in capsys.readouterr().err
    assert not operator.out.exists()


def test_what_a_front_does_otherwise_is_said(front, capsys):
    assert front.render() == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert any("the table stays as it is rendered" in note for note in notes)
