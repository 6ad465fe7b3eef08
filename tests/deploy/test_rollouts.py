"""New versions of the model on Kubernetes: what Argo Rollouts is given, and that Services and judge fit it."""

import pytest
import yaml

from routing.cli import build_parser

from .conftest import REGIONS
from .test_kubernetes import of_kind
from .test_network import Network

ARGO = {"namespace": "argo-rollouts", "labels": {}}


@pytest.fixture
def regions(operator, kustomize):
    """Resources of the example fleet with rollouts, by region."""
    operator.settings["rollouts"] = True
    assert operator.render() == 0
    return {name: kustomize(operator.out / name) for name in REGIONS}


def test_what_argo_is_given_is_what_its_schemas_take(regions, check):
    for resources in regions.values():
        for one in resources:
            check(one)
    assert set(of_kind(regions["us-east"], "Rollout")) == {"gpu", "gpu-2"}
    assert set(of_kind(regions["eu-west"], "Rollout")) == {"gpu"}
    broken = of_kind(regions["us-east"], "Rollout")["gpu"]
    broken["spec"]["strategy"]["canary"]["maxSruge"] = 1
    with pytest.raises(AssertionError, match="maxSruge"):
        check(broken)


def test_each_rollout_has_its_pods_its_services_and_its_judge(regions):
    for name, resources in regions.items():
        services, deployments = of_kind(resources, "Service"), of_kind(resources, "Deployment")
        templates = of_kind(resources, "AnalysisTemplate")
        for rollout, one in of_kind(resources, "Rollout").items():
            spec, canary = one["spec"], one["spec"]["strategy"]["canary"]
            assert spec["workloadRef"]["name"] == rollout
            pod = deployments[rollout]["spec"]["template"]["metadata"]["labels"]
            stable, candidate = services[rollout]["spec"]["selector"], services[rollout.replace("gpu", "gpu-candidate")]
            assert stable.items() <= (pod | canary["stableMetadata"]["labels"]).items()
            assert not stable.items() <= (pod | canary["canaryMetadata"]["labels"]).items()
            assert candidate["spec"]["selector"].items() <= (pod | canary["canaryMetadata"]["labels"]).items()
            steps = [step["analysis"] for step in canary["steps"] if "analysis" in step]
            assert canary["steps"][-1] == {"analysis": steps[-1]}  # nothing is promoted unjudged
            named = [one["templateName"] for found in (canary["analysis"], *steps) for one in found["templates"]]
            assert set(named) == set(templates)
        if name == "sa-east":  # it has no GPUs
            assert "judge" not in deployments
            continue
        (container,) = deployments["judge"]["spec"]["template"]["spec"]["containers"]
        options = build_parser().parse_args([*container["command"][3:], *container["args"]])
        assert (options.listen, options.slow_s) == ("0.0.0.0:9906", 3.125)
        dispatchers = [f"dispatcher{end}" for end in ("", "-2") if f"dispatcher{end}" in services]
        assert [url.split("/")[2].split(":")[0] for url in options.pages] == dispatchers
        for url in options.pages:
            host, port = url.split("/")[2].split(":")
            assert int(port) in {one["port"] for one in services[host]["spec"]["ports"]}
        assert "gpu-candidate.stillmotion.svc.cluster.local:3000 resolvers" in str(of_kind(resources, "ConfigMap")), (
            name
        )
    scaled = of_kind(regions["us-east"], "ScaledObject")
    assert {name: one["spec"]["scaleTargetRef"]["kind"] for name, one in scaled.items()} == {
        "gpu": "Rollout",
        "gpu-2": "Rollout",
    }
    assert scaled["gpu-2"]["spec"]["scaleTargetRef"]["name"] == "gpu-2"


def test_the_judge_is_asked_by_argo_alone_and_reads_dispatchers_alone(regions):
    network = Network(regions["us-east"])
    assert network.allows(ARGO, "judge", 9906)
    assert network.allows("judge", "dispatcher", 9902)
    assert network.allows("judge", "dispatcher-2", 9902)
    assert not network.allows("edge", "judge", 9906)
    assert not network.allows("judge", "gpu", 3000)
    assert not network.allows("judge", "203.0.113.7", 443)


def test_copies_of_users_requests_go_to_the_judge_of_their_region(operator, kustomize, check):
    operator.settings["rollouts"] = True
    operator.fleet["data_plane"]["shadow"] = {"share": 0.02}
    assert operator.render() == 0
    resources = kustomize(operator.out / "us-east")
    for one in resources:
        check(one)
    (container,) = of_kind(resources, "Deployment")["judge"]["spec"]["template"]["spec"]["containers"]
    options = build_parser().parse_args([*container["command"][3:], *container["args"]])
    assert options.shadow == "0.0.0.0:9907"
    assert {"name": "copies", "containerPort": 9907} in container["ports"]
    ports = {one["name"]: one for one in of_kind(resources, "Service")["judge"]["spec"]["ports"]}
    assert ports["copies"] == {"name": "copies", "port": 9907, "targetPort": "copies"}
    (edge,) = [one["data"] for name, one in of_kind(resources, "ConfigMap").items() if name.startswith("edge-files")]
    (cluster,) = [one for one in bootstrap(edge)["clusters"] if one["name"] == "shadow"]
    assert "judge.stillmotion.svc.cluster.local" in str(cluster)
    assert "request_mirror_policies" in edge["routes.yaml"]
    network = Network(resources)
    assert network.allows("edge", "judge", 9907)
    assert not network.allows("gpu", "judge", 9907)


def bootstrap(files):
    return yaml.safe_load(files["bootstrap.yaml"])["static_resources"]


def test_copies_without_a_judge_are_refused(operator, capsys):
    operator.fleet["data_plane"]["shadow"] = {}
    assert operator.render() == 2
    assert "data_plane.shadow: wants rollouts: true" in capsys.readouterr().err


def test_without_rollouts_there_is_nothing_of_them(overlays):
    for resources in overlays.values():
        assert not {"Rollout", "AnalysisTemplate"} & {one["kind"] for one in resources}
        assert "judge" not in of_kind(resources, "Deployment")
        assert "gpu-candidate" not in str(of_kind(resources, "ConfigMap"))
