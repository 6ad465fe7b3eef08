"""Who may talk to whom, by the network policies alone: a small reading of what Kubernetes says of them."""

from ipaddress import ip_address, ip_network

import pytest

from .conftest import REGIONS
from .test_kubernetes import of_kind, pods

PORTS = {"edge": 8443, "dispatcher": 8444, "gpu": 3000, "control": 9900}
DNS = {"namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
PROMETHEUS = {"namespace": "monitoring", "labels": {"app": "prometheus"}}
STRANGER = {"namespace": "default", "labels": {"app.kubernetes.io/name": "stillmotion"}}


class Network:
    """The policies of one region's cluster."""

    def __init__(self, resources) -> None:
        self.policies = [one["spec"] for one in of_kind(resources, "NetworkPolicy").values()]
        self.pods = {
            name: {"namespace": "stillmotion", "labels": pod["metadata"]["labels"]}
            for name, pod in pods(resources).items()
        }

    def allows(self, source, target, port, protocol="TCP"):
        """Whether a connection gets out of its source and into its target; a text is an address outside."""
        source = self.pods.get(source, source) if isinstance(source, str) else source
        target = self.pods.get(target, target) if isinstance(target, str) else target
        return self._passes(source, "Egress", target, port, protocol) and self._passes(
            target, "Ingress", source, port, protocol
        )

    def _passes(self, pod, direction, peer, port, protocol):
        if isinstance(pod, str) or pod["namespace"] != "stillmotion":
            return True  # not of this namespace: other policies
        about = [
            policy
            for policy in self.policies
            if direction in policy["policyTypes"] and self._selects(policy["podSelector"], pod["labels"])
        ]
        way, ends = ("egress", "to") if direction == "Egress" else ("ingress", "from")
        return not about or any(
            self._rule(rule, ends, peer, port, protocol) for policy in about for rule in policy.get(way, [])
        )

    def _rule(self, rule, ends, peer, port, protocol):
        ports = rule.get("ports")
        if ports and not any((one["port"], one.get("protocol", "TCP")) == (port, protocol) for one in ports):
            return False
        return ends not in rule or any(self._is(peer, one) for one in rule[ends])

    def _is(self, peer, wanted):
        if "ipBlock" in wanted:
            return isinstance(peer, str) and ip_address(peer) in ip_network(wanted["ipBlock"]["cidr"])
        if isinstance(peer, str):
            return False
        space = wanted.get("namespaceSelector")
        if space is None and peer["namespace"] != "stillmotion":
            return False
        if space is not None and space["matchLabels"] != {"kubernetes.io/metadata.name": peer["namespace"]}:
            return False
        return self._selects(wanted.get("podSelector", {}), peer["labels"])

    def _selects(self, selector, labels):
        if not selector.get("matchLabels", {}).items() <= labels.items():
            return False
        return all(labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", []))


@pytest.fixture(params=REGIONS)
def network(request, overlays):
    return Network(overlays[request.param])


@pytest.fixture
def us_east(overlays):
    return Network(overlays["us-east"])


def test_only_edges_reach_dispatchers_and_only_dispatchers_reach_gpu_servers(network):
    callers = [*network.pods, PROMETHEUS, STRANGER, DNS, "198.51.100.7"]
    for name in network.pods:
        kind = name.split("-")[0]
        if kind not in {"dispatcher", "gpu"}:
            continue
        expected = {"dispatcher": "edge", "gpu": "dispatcher"}[kind]
        for caller in callers:
            may = network.allows(caller, name, PORTS[kind])
            is_expected = isinstance(caller, str) and caller.startswith(expected)
            # Prometheus reads a GPU server's page at the port that it serves on.
            assert may == (is_expected or (caller is PROMETHEUS and kind == "gpu")), (caller, name)


def test_users_reach_edges_and_nothing_else(network):
    for name in network.pods:
        for port in (*PORTS.values(), 9901, 9903, 9905):
            assert network.allows("198.51.100.7", name, port) == (name == "edge" and port == 8443)


def test_edges_of_other_regions_reach_dispatchers_here_and_the_control_loop(us_east):
    for address in ("10.2.7.7", "10.3.0.1"):  # edges_from of eu-west and sa-east
        assert us_east.allows(address, "dispatcher", 8444)
        assert us_east.allows(address, "dispatcher-2", 8444)
        assert us_east.allows(address, "control", 9900)
        assert not us_east.allows(address, "gpu", 3000)
        # A control loop of eu-west reads dispatchers here; sa-east has none.
        assert us_east.allows(address, "dispatcher", 9902) == address.startswith("10.2.")
    assert not us_east.allows("10.4.0.1", "dispatcher", 8444)


def test_edges_reach_all_dispatchers_and_control_loops_and_nobody_else(network):
    for address, port in (("10.1.0.11", 8444), ("10.1.0.12", 8444), ("10.2.0.11", 8444), ("10.2.0.20", 9900)):
        assert network.allows("edge", address, port)
    assert not network.allows("edge", "10.1.0.11", 22)
    assert not network.allows("edge", "198.51.100.7", 443)


def test_a_gpu_server_reaches_nobody_but_the_collector_of_traces(us_east):
    for target in (*us_east.pods, PROMETHEUS, STRANGER, "198.51.100.7", "169.254.169.254"):
        for port in (53, 80, 443, 3000, 8443, 8444, 9090):
            assert not us_east.allows("gpu", target, port)
            assert not us_east.allows("gpu", target, port, "UDP")
    assert us_east.allows("gpu", PROMETHEUS, 4318)  # of the same namespace
    assert us_east.allows("gpu", DNS, 53, "UDP")


def test_without_traces_a_gpu_server_reaches_nobody_at_all(operator, kustomize):
    del operator.fleet["data_plane"]["tracing"]
    assert operator.render() == 0
    network = Network(kustomize(operator.out / "us-east"))
    for target in (*network.pods, DNS, PROMETHEUS, STRANGER, "198.51.100.7"):
        for port in (53, 80, 443, 3000, 4318, 8443, 8444, 9090):
            assert not network.allows("gpu", target, port)
            assert not network.allows("gpu", target, port, "UDP")


def test_prometheus_scrapes_all_and_names_are_found(us_east):
    for name, port in (("gpu", 3000), ("edge", 9903), ("dispatcher", 9902), ("edge", 9905), ("control", 9900)):
        assert us_east.allows(PROMETHEUS, name, port)
    for name in ("edge", "dispatcher", "control"):
        assert us_east.allows(name, DNS, 53, "UDP")
    assert us_east.allows("control", PROMETHEUS, 9090)
