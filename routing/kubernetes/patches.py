"""What of the base differs from region to region, as kustomize's patches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from math import ceil
from pathlib import Path, PurePosixPath
from typing import Any

from ..data_plane import Certificate, DataPlane, Dispatcher, MutualTls, Place, Tracing, host_and_port, seen_from
from ..dispatcher.config import Settings
from ..dispatcher.files import SOCKET
from ..envoy.edge import ROUTES_KIND, edge_bootstrap, edge_endpoints, edge_routes, resting_delay
from ..envoy.files import (
    AUTHORITY,
    BOOTSTRAP,
    ENDPOINTS,
    ENDPOINTS_KIND,
    EXTENSION_CONFIG,
    KEYS,
    PEERS,
    ROUTES,
    RUNTIME,
    RUNTIME_KIND,
    SECRET,
    TLS,
    authority_secret,
    certificate_secret,
    key_config,
    read_keys,
    resources_text,
    runtime_resource,
)
from ..files import yaml_text
from ..fleet import Fleet
from ..retries import job_timeout_s
from ..rollout.settings import SLOW_JOBS
from ..table import RoutingTable
from .settings import KubernetesSettings, RegionSettings

Patch = dict[str, Any]

ACTIVATE = "0.3"
"""Jobs, at servers or asked for: above it the first server comes, below it the last goes after five minutes."""
_NAMESPACE = "kubernetes.io/metadata.name"
_LOST_NODE = [
    {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
    for what in ("unreachable", "not-ready")
]
"""A pod of a node that is lost is replaced after so long, and not after Kubernetes' five minutes."""
_MEMORY_OVER_HEAP = 1.25
"""What Envoy takes beside the heap that it counts: code, stacks, and what the allocator keeps."""


def edge_patches(fleet: Fleet, settings: KubernetesSettings, name: str) -> list[Patch]:
    """Of a region's edges and their Service."""
    region = settings.regions[name]
    secrets = {"edge-tls": str(USERS_CERTIFICATE)} if fleet.data_plane.tls else {}
    pod = _proxy_pod(fleet, settings, "edge", secrets)
    replicas = None if region.most_edges else region.edges  # the autoscaler's to say
    found = [
        _merge("Deployment", "edge", {"replicas": replicas, "template": {"spec": pod}}),
        _service("edge", fleet.places()[name].edge, "users", region),
    ]
    if region.most_edges:
        values = (("/spec/minReplicas", region.edges), ("/spec/maxReplicas", region.most_edges))
        changes = [{"op": "replace", "path": path, "value": value} for path, value in values]
        found.append(_json("HorizontalPodAutoscaler", "edge", changes))
    return found


def dispatcher_patches(fleet: Fleet, settings: KubernetesSettings, name: str, number: int) -> list[Patch]:
    """Of one dispatcher, its Service, and the GPU servers behind it. They see names without the suffix."""
    region, dispatcher = settings.regions[name], fleet.places()[name].dispatchers[number - 1]
    pod = _proxy_pod(fleet, settings, "dispatcher", {})
    server: dict[str, Any] = {"name": "server"}
    if settings.gpu_resource != "nvidia.com/gpu":
        server["resources"] = {"limits": {"nvidia.com/gpu": None, settings.gpu_resource: 1}}
    gpu: dict[str, Any] = {"terminationGracePeriodSeconds": grace_s(fleet, settings.leave_s)["gpu"]}
    gpu["containers"] = [server]
    # Nodes with GPUs are often kept free of all that does not ask for one.
    gpu["tolerations"] = [{"key": settings.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}, *_LOST_NODE]
    if region.gpu_nodes:
        gpu["nodeSelector"] = dict(region.gpu_nodes)
    replicas = None if region.scaling else dispatcher.size  # the scaler's to say
    return [
        _merge("Deployment", "dispatcher", {"template": {"spec": pod}}),
        _service("dispatcher", dispatcher.address, "edges", region, admin=host_and_port(dispatcher.admin)[1]),
        _merge("Deployment", "gpu", {"replicas": replicas, "template": {"spec": gpu}}),
    ]


def scaling_patch(fleet: Fleet, settings: KubernetesSettings, name: str, number: int) -> Patch:
    """Of what scales the GPU servers behind one dispatcher: the jobs that it has, in the line and at servers."""
    scaling, dispatcher = settings.regions[name].scaling, fleet.places()[name].dispatchers[number - 1]
    assert scaling is not None
    series = f'haproxy_backend_current_sessions{{proxy=~"gpus|candidate",region="{name}",dispatcher="{number}"}}'
    values: tuple[tuple[str, object], ...] = (
        ("/spec/scaleTargetRef/name", f"gpu{suffix(number)}"),
        ("/spec/minReplicaCount", least_servers(fleet, name, dispatcher, scaling.least)),
        ("/spec/maxReplicaCount", dispatcher.size),
        ("/spec/triggers/0/metadata/serverAddress", settings.prometheus),
        ("/spec/triggers/0/metadata/query", f"sum(avg_over_time({series}[2m]))"),
        ("/spec/triggers/0/metadata/threshold", f"{scaling.busy_share:g}"),
    )
    changes: list[dict[str, Any]] = [{"op": "replace", "path": path, "value": value} for path, value in values]
    if scaling.by_demand or not scaling.least:
        # What the region's users ask for, as servers that it would keep busy, and this dispatcher's part of them.
        jobs = f'envoy_vhost_route_upstream_rq_completed{{tier="edge",envoy_route="jobs",region="{name}"}}'
        part = fleet.service_time_s * dispatcher.size / fleet.regions[name].gpus
        metadata = {
            "serverAddress": settings.prometheus,
            "query": f"sum(rate({jobs}[2m])) * {part:g}",
            "threshold": f"{scaling.busy_share:g}",
            "activationThreshold": ACTIVATE,
            "ignoreNullValues": "false",
        }
        trigger = {"type": "prometheus", "metricType": "AverageValue", "metadata": metadata}
        changes.append({"op": "add", "path": "/spec/triggers/-", "value": trigger})
        changes.append({"op": "add", "path": "/spec/triggers/0/metadata/activationThreshold", "value": ACTIVATE})
    return _json("ScaledObject", "gpu", changes)


def rollout_patches(number: int, *, scaled: bool) -> list[Patch]:
    """Of GPU servers whose versions Argo Rollouts changes: their Service leaves the candidate's out."""
    found = [
        _add("Service", "gpu", "/spec/selector/stillmotion-version", "stable"),
        _json("Rollout", "gpu", [{"op": "replace", "path": "/spec/workloadRef/name", "value": f"gpu{suffix(number)}"}]),
    ]
    if scaled:
        target = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": f"gpu{suffix(number)}"}
        found.append(_json("ScaledObject", "gpu", [{"op": "replace", "path": "/spec/scaleTargetRef", "value": target}]))
    return found


def judge_patches(fleet: Fleet, name: str) -> list[Patch]:
    """Of the judge: the dispatchers of its region, how long a job may take, and copies of users' requests."""
    dispatchers = enumerate(fleet.places()[name].dispatchers, start=1)
    pages = [f"http://dispatcher{suffix(number)}:{host_and_port(one.admin)[1]}" for number, one in dispatchers]
    arguments = ["--listen=0.0.0.0:9906", f"--slow-s={SLOW_JOBS * fleet.service_time_s:g}", "--pages", *pages]
    container: dict[str, Any] = {"name": "judge", "args": arguments}
    found = []
    if fleet.data_plane.shadow is not None:
        arguments.insert(2, f"--shadow=0.0.0.0:{COPIES_PORT}")
        container["ports"] = [{"name": "copies", "containerPort": COPIES_PORT}]
        port = {"name": "copies", "port": COPIES_PORT, "targetPort": "copies"}
        found.append(_add("Service", "judge", "/spec/ports/-", port))
    return [_merge("Deployment", "judge", {"template": {"spec": {"containers": [container]}}}), *found]


def control_patches(settings: KubernetesSettings, name: str) -> list[Patch]:
    """Of a control loop, its Service, and its volume."""
    region, found = settings.regions[name], []
    if region.control is not None:
        found.append(_service("control", region.control, "pages", region))
    else:  # the fleet's only region: nobody calls from elsewhere
        found.append(_merge("Service", "control", {"type": "ClusterIP", "externalTrafficPolicy": None}))
    if region.storage_class is not None:
        found.append(_merge("PersistentVolumeClaim", "control", {"storageClassName": region.storage_class}))
    return found


def network_patches(fleet: Fleet, settings: KubernetesSettings, name: str) -> list[Patch]:
    """Of the policies: addresses of other regions, and the namespace of Prometheus."""
    others = [other for other in fleet.names if other != name]
    callers = [_block(network) for other in others for network in settings.regions[other].edges_from]
    found = []
    if callers:
        rule = {"from": callers, "ports": [{"port": EDGES_PORT}]}
        found.append(_add("NetworkPolicy", "edges-reach-dispatchers", "/spec/ingress/-", rule))
        if name in settings.control:
            rule = {"from": callers, "ports": [{"port": CONTROL_PORT}]}
            found.append(_add("NetworkPolicy", "agents-reach-control", "/spec/ingress/-", rule))
    readers = [
        _block(network)
        for other in others
        if other in settings.control
        for network in settings.regions[other].edges_from
    ]
    if readers:
        rule = {"from": readers, "ports": [{"port": ADMIN_PORT}]}
        found.append(_add("NetworkPolicy", "control-reads-dispatchers", "/spec/ingress/-", rule))
    called = [one.address for other in fleet.names for one in fleet.places()[other].dispatchers]
    called += [at for other in settings.control if (at := settings.regions[other].control) is not None]
    for address in called:
        rule = {"to": [_block(_host_network(address))], "ports": [{"port": host_and_port(address)[1]}]}
        found.append(_add("NetworkPolicy", "edges-reach-out", "/spec/egress/-", rule))
    place = "/spec/ingress/0/from/0/namespaceSelector/matchLabels/kubernetes.io~1metadata.name"
    change = {"op": "replace", "path": place, "value": settings.monitoring}
    found.append(_json("NetworkPolicy", "prometheus-scrapes", [change]))
    return found


def traces_policy(tracing: Tracing, settings: KubernetesSettings) -> dict[str, Any]:
    """Lets pods send traces: to the namespace that watches, or to an address; with a name, they may look it up."""
    host, _, port = tracing.collector.rpartition(":")
    try:
        network = ip_network(host.strip("[]"))
        rules = [{"to": [_block(str(network))], "ports": [{"port": int(port)}]}]
    except ValueError:
        there = {"namespaceSelector": {"matchLabels": {_NAMESPACE: settings.monitoring}}}
        names = {"namespaceSelector": {"matchLabels": {_NAMESPACE: "kube-system"}}}
        dns = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
        rules = [{"to": [there], "ports": [{"port": int(port)}]}, {"to": [names], "ports": dns}]
    senders = {"key": "app.kubernetes.io/component", "operator": "In", "values": ["edge", "gpu"]}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "traces-are-sent"},
        "spec": {"podSelector": {"matchExpressions": [senders]}, "policyTypes": ["Egress"], "egress": rules},
    }


def suffix(number: int) -> str:
    """Of names of what belongs to a dispatcher of a region; the first has none."""
    return "" if number == 1 else f"-{number}"


def least_servers(fleet: Fleet, region: str, dispatcher: Dispatcher, least: int) -> int:
    """Its part of the least number of GPU servers of a region, rounded up."""
    return min(dispatcher.size, ceil(least * dispatcher.size / fleet.regions[region].gpus))


def _proxy_pod(fleet: Fleet, settings: KubernetesSettings, role: str, secrets: Mapping[str, str]) -> dict[str, Any]:
    proxy: dict[str, Any] = {"name": "proxy"}
    if role == "edge":
        memory = {"memory": f"{ceil(fleet.data_plane.limits.heap_mb * _MEMORY_OVER_HEAP)}Mi"}
        proxy["resources"] = {"limits": memory}
    pod: dict[str, Any] = {"terminationGracePeriodSeconds": grace_s(fleet, settings.leave_s)[role]}
    if fleet.data_plane.mutual_tls is not None:
        secrets = {**secrets, "peer-tls": str(PEERS_CERTIFICATE)}
    if secrets:
        proxy["volumeMounts"] = [{"name": key, "mountPath": path, "readOnly": True} for key, path in secrets.items()]
        pod["volumes"] = [{"name": key, "secret": {"secretName": key, "defaultMode": 0o440}} for key in secrets]
    return {**pod, "containers": [proxy]}


def _service(kind: str, address: str, port: str, region: RegionSettings, admin: int | None = None) -> Patch:
    """A load balancer's address and ports; `admin`: of a dispatcher's own pages, for control loops."""
    host, number = host_and_port(address)
    change: list[dict[str, Any]] = [
        {"op": "add", "path": "/spec/loadBalancerIP", "value": host},
        {"op": "replace", "path": "/spec/ports/0", "value": {"name": port, "port": number, "targetPort": port}},
    ]
    if admin is not None:
        change.append(
            {"op": "replace", "path": "/spec/ports/1", "value": {"name": "admin", "port": admin, "targetPort": "admin"}}
        )
    annotations = region.annotations.get(kind)  # type: ignore[call-overload]  # one of the three
    if annotations:
        change.append({"op": "add", "path": "/metadata/annotations", "value": dict(annotations)})
    return _json("Service", kind, change)


def _block(network: str) -> dict[str, Any]:
    return {"ipBlock": {"cidr": network}}


def _host_network(address: str) -> str:
    host, _ = host_and_port(address)
    return f"{host}/{128 if ':' in host else 32}"


def _merge(kind: str, name: str, spec: dict[str, Any]) -> Patch:
    versions = {"Deployment": "apps/v1"}
    head = {"apiVersion": versions.get(kind, "v1"), "kind": kind, "metadata": {"name": name}}
    return _patch(kind, name, {**head, "spec": spec})


def _add(kind: str, name: str, path: str, value: object) -> Patch:
    return _json(kind, name, [{"op": "add", "path": path, "value": value}])


def _json(kind: str, name: str, changes: Iterable[Mapping[str, Any]]) -> Patch:
    return _patch(kind, name, list(changes))


def _patch(kind: str, name: str, content: object) -> Patch:
    # JSON is YAML; so a patch is one line of the file, and null is kept.
    return {"target": {"kind": kind, "name": name}, "patch": json.dumps(content)}


USERS_PORT, EDGES_PORT, METRICS_PORT, ADMIN_PORT, GPU_PORT, CONTROL_PORT = 8443, 8444, 9903, 9902, 3000, 9900
COPIES_PORT = 9907
"""Of containers; `deploy/kubernetes/base` has them too."""
LIVE = PurePosixPath("/run/stillmotion")
"""Folder of what changes in a proxy's pod: an edge's files, a dispatcher's socket."""
DISPATCHER_FILES = PurePosixPath("/etc/stillmotion/files")
"""Folder of a dispatcher's files, in its pod."""
USERS_CERTIFICATE = PurePosixPath("/etc/stillmotion/tls")
PEERS_CERTIFICATE = PurePosixPath("/etc/stillmotion/peers")
_ADMIN = "127.0.0.1:9901"
_SPARE_S = 10
"""Between the end of a drain and the kill."""
GPU_LEAVE_S = 8
"""preStop of a GPU server: what dispatchers know of names is at most 5 s old (CoreDNS), and they ask each second."""


def edge_files(fleet: Fleet, region: str, table: RoutingTable) -> dict[str, str]:
    """Text of an edge's files, by name; without its keys."""
    plane = fleet.data_plane
    place = Place(edge=f"0.0.0.0:{USERS_PORT}", admin=_ADMIN, metrics=f"0.0.0.0:{METRICS_PORT}")
    files = {
        BOOTSTRAP: yaml_text(edge_bootstrap(fleet, region, place, LIVE)),
        ENDPOINTS: resources_text(ENDPOINTS_KIND, [edge_endpoints(fleet, region, fleet.places(), table)]),
        ROUTES: resources_text(ROUTES_KIND, [edge_routes(fleet, region)]),
        RUNTIME: resources_text(RUNTIME_KIND, [runtime_resource(resting_delay(fleet.retry.delay))]),
        **_peers(plane),
    }
    if plane.tls is not None:
        own = Certificate(certificate="tls.crt", key="tls.key")
        files[TLS] = resources_text(SECRET, [certificate_secret("users", own, Path(USERS_CERTIFICATE))])
    return files


def dispatcher_settings(fleet: Fleet, region: str, service: str, size: int, candidate: str | None = None) -> Settings:
    """Return what a dispatcher's files are made of.

    Args:
        fleet: with its data plane.
        region: where it is.
        service: whole name of the Service of its GPU servers; HAProxy knows no search domains.
        size: GPU servers behind it, at most.
        candidate: whole name of the Service of those with another version of the model; None: there are never any.
    """
    mutual = fleet.data_plane.mutual_tls
    if mutual is not None:
        paths = {"ca": "ca.crt", "certificate": "tls.crt", "key": "tls.key"}
        mutual = mutual.model_copy(update={name: str(PEERS_CERTIFICATE / path) for name, path in paths.items()})
    return Settings(
        region=region,
        address=f"0.0.0.0:{EDGES_PORT}",
        admin=f"0.0.0.0:{ADMIN_PORT}",
        folder=DISPATCHER_FILES,
        socket=LIVE / SOCKET,
        discovered=f"{service}:{GPU_PORT}",
        candidate=candidate and f"{candidate}:{GPU_PORT}",
        size=size,
        certificate=mutual,
    )


def key_file(fleet: Fleet, base: Path) -> dict[str, str]:
    """Text of the file with API keys, by name; nothing where there are none."""
    if fleet.data_plane.api_keys is None:
        return {}
    keys = key_config(read_keys(seen_from(base, fleet.data_plane.api_keys)))
    return {KEYS: resources_text(EXTENSION_CONFIG, [keys])}


def edge_drain_s(fleet: Fleet) -> int:
    """Longest time from the first byte of a request at an edge to the last of its answer."""
    return ceil(fleet.data_plane.limits.upload_s + job_timeout_s(fleet))


def dispatcher_drain_s(fleet: Fleet) -> int:
    """The same at a dispatcher: the line, and a job."""
    return ceil(2 * max(fleet.queue.bounds_s(fleet.service_time_s)) + fleet.jobs.deadline_s)


def grace_s(fleet: Fleet, leave_s: float) -> dict[str, int]:
    """`terminationGracePeriodSeconds` of each kind of pod: time to leave, the longest job, and a little."""
    return {
        "edge": ceil(leave_s) + edge_drain_s(fleet) + _SPARE_S,
        "dispatcher": ceil(leave_s) + dispatcher_drain_s(fleet) + _SPARE_S,
        "gpu": GPU_LEAVE_S + ceil(fleet.jobs.deadline_s) + _SPARE_S,
    }


def _peers(plane: DataPlane) -> dict[str, str]:
    mutual = plane.mutual_tls
    if mutual is None:
        return {}
    own = MutualTls(ca="ca.crt", certificate="tls.crt", key="tls.key")
    where = Path(PEERS_CERTIFICATE)
    return {
        PEERS: resources_text(SECRET, [certificate_secret("peers", own, where)]),
        AUTHORITY: resources_text(SECRET, [authority_secret(own, where)]),
    }
