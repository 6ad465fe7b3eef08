"""What is given to Kubernetes is what its schemas take, and fits together."""

import re
import tempfile

import pytest
import yaml

from laboratory.simulate.scaling_settings import Scaling
from routing.cli import build_parser
from routing.dispatcher.files import check as check_with_haproxy
from routing.envoy.binary import check as check_with_envoy
from routing.envoy.binary import self_contained

from .conftest import BASE, REGIONS


def of_kind(resources, kind):
    return {one["metadata"]["name"]: one for one in resources if one["kind"] == kind}


def pods(resources):
    """Pod templates, by the name of their Deployment."""
    return {name: one["spec"]["template"] for name, one in of_kind(resources, "Deployment").items()}


def containers(pod):
    """Those that start first come first."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def filled_in(text, known):
    """A command's text, with the values of its environment."""
    return re.sub(r'\$\((\w+)\)|"\$(\w+)"', lambda found: known[found[1] or found[2]], text)


def selected(selector, labels):
    return selector.items() <= labels.items()


@pytest.mark.parametrize("part", sorted(path.name for path in BASE.iterdir()))
def test_each_part_of_the_base_is_what_its_schema_takes(part, kustomize, check):
    for one in kustomize(BASE / part):
        check(one)


@pytest.mark.parametrize("region", REGIONS)
def test_each_overlay_is_what_its_schemas_take(region, overlays, check):
    for one in overlays[region]:
        check(one)
        if one["kind"] != "Namespace":
            assert one["metadata"]["namespace"] == "stillmotion"


def test_a_field_that_a_schema_does_not_know_is_found(overlays, check):
    for kind, path in (
        ("Deployment", ("spec", "template", "spec", "containers", 0)),
        ("NetworkPolicy", ("spec",)),
        ("PodDisruptionBudget", ("spec",)),
        ("ScaledObject", ("spec", "triggers", 0)),
        ("ScaledObject", ("spec", "advanced", "horizontalPodAutoscalerConfig", "behavior", "scaleUp")),
    ):
        broken = yaml.safe_load(yaml.safe_dump(next(iter(of_kind(overlays["us-east"], kind).values()))))
        part = broken
        for key in path:
            part = part[key]
        part["replicsa"] = 1
        with pytest.raises(Exception, match="replicsa"):
            check(broken)


def test_the_control_loop_knows_how_many_servers_a_scaler_keeps(overlays):
    for resources in overlays.values():
        (files,) = [one["data"] for name, one in of_kind(resources, "ConfigMap").items() if name.startswith("fleet-")]
        regions = yaml.safe_load(files["fleet.yaml"])["regions"]
        assert {name: one.get("least") for name, one in regions.items()} == {
            "us-east": 24,
            "eu-west": None,
            "sa-east": None,
        }


def test_a_region_has_what_its_part_of_the_fleet_says(overlays):
    found = {region: set(of_kind(resources, "Deployment")) for region, resources in overlays.items()}
    assert found == {
        "us-east": {"edge", "dispatcher", "gpu", "dispatcher-2", "gpu-2", "control"},
        "eu-west": {"edge", "dispatcher", "gpu", "control"},
        "sa-east": {"edge"},
    }
    us_east = of_kind(overlays["us-east"], "Deployment")
    assert us_east["edge"]["spec"]["replicas"] == 3
    assert "replicas" not in us_east["gpu"]["spec"]  # the scaler's to say
    assert of_kind(overlays["eu-west"], "Deployment")["gpu"]["spec"]["replicas"] == 24
    scaled = of_kind(overlays["us-east"], "ScaledObject")
    limits = {name: (one["spec"]["minReplicaCount"], one["spec"]["maxReplicaCount"]) for name, one in scaled.items()}
    assert limits == {"gpu": (18, 30), "gpu-2": (6, 10)}  # 24 of 40, shared out as 30 and 10 are
    for name, one in scaled.items():
        assert one["spec"]["scaleTargetRef"]["name"] == name
    services = of_kind(overlays["us-east"], "Service")
    assert {name: one["spec"].get("loadBalancerIP") for name, one in services.items()} == {
        "edge": "203.0.113.10",
        "dispatcher": "10.1.0.11",
        "dispatcher-2": "10.1.0.12",
        "control": "10.1.0.20",
        "gpu": None,
        "gpu-2": None,
    }


def test_servers_that_may_all_go_come_back_by_what_users_ask_for(operator, kustomize, check):
    operator.settings["regions"]["us-east"]["scaling"] = {"least": 0, "busy_share": 0.5}
    assert operator.render() == 0
    scaled = of_kind(kustomize(operator.out / "us-east"), "ScaledObject")
    for name, part in (("gpu", 2.5 * 30 / 40), ("gpu-2", 2.5 * 10 / 40)):
        check(scaled[name])
        spec = scaled[name]["spec"]
        assert spec["minReplicaCount"] == 0
        jobs, demand = (one["metadata"] for one in spec["triggers"])
        assert float(jobs["activationThreshold"]) == float(demand["activationThreshold"]) == Scaling().activate
        assert demand["query"].endswith(f'region="us-east"}}[2m])) * {part:g}')
        assert demand["threshold"] == jobs["threshold"] == "0.5"
    # eu-west has servers all the time. Were it not so, nobody would serve us-east until the first has come.
    operator.settings["regions"]["eu-west"]["scaling"] = {"least": 0}
    assert operator.render() == 2


def test_edges_come_and_go_with_their_processors_where_there_may_be_more(operator, kustomize, check):
    operator.settings["regions"]["us-east"]["most_edges"] = 9
    assert operator.render() == 0
    resources = kustomize(operator.out / "us-east")
    (scaler,) = of_kind(resources, "HorizontalPodAutoscaler").values()
    check(scaler)
    edge = of_kind(resources, scaler["spec"]["scaleTargetRef"]["kind"])[scaler["spec"]["scaleTargetRef"]["name"]]
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (3, 9)
    assert "replicas" not in edge["spec"]
    (metric,) = scaler["spec"]["metrics"]
    by_name = {one["name"]: one for one in edge["spec"]["template"]["spec"]["containers"]}
    assert "cpu" in by_name[metric["containerResource"]["container"]]["resources"]["requests"]  # or there is no share
    assert not of_kind(kustomize(operator.out / "eu-west"), "HorizontalPodAutoscaler")
    operator.settings["regions"]["us-east"]["most_edges"] = 2
    assert operator.render() == 2


@pytest.mark.parametrize("region", REGIONS)
def test_pods_of_a_lost_node_are_replaced_within_seconds_of_its_loss(region, overlays):
    for name, pod in pods(overlays[region]).items():
        found = {one["key"]: one["tolerationSeconds"] for one in pod["spec"]["tolerations"] if "node." in one["key"]}
        assert found.keys() == {"node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"}, name
        assert max(found.values()) <= 30, name


@pytest.mark.parametrize("region", REGIONS)
def test_selectors_find_the_pods_that_they_are_for_and_no_others(region, overlays):
    resources = overlays[region]
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(resources).items()}
    for kind in ("Deployment", "Service", "PodDisruptionBudget"):
        for name, one in of_kind(resources, kind).items():
            selector = one["spec"]["selector"]
            selector = selector.get("matchLabels", {}) if kind != "Service" else selector
            assert {pod for pod, found in labels.items() if selected(selector, found)} == {name}, (kind, name)


@pytest.mark.parametrize("region", REGIONS)
def test_all_that_a_pod_refers_to_is_there(region, overlays):
    resources = overlays[region]
    names = {(one["kind"], one["metadata"]["name"]) for one in resources}
    for pod in pods(resources).values():
        volumes = {}
        for volume in pod["spec"]["volumes"]:
            volumes[volume["name"]] = volume
            sources = volume.get("projected", {}).get("sources", [volume])
            for source in sources:
                for kind, key, field in (
                    ("ConfigMap", "configMap", "name"),
                    ("Secret", "secret", "name"),
                    ("Secret", "secret", "secretName"),
                    ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
                ):
                    if field in source.get(key, {}) and (kind, source[key][field]) not in names:
                        assert source[key].get("optional"), source
        for container in containers(pod):
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            known = {}
            for source in container.get("envFrom", []):
                name = source["configMapRef"]["name"]
                if ("ConfigMap", name) not in names:
                    assert source["configMapRef"]["optional"]
                    continue
                known |= of_kind(resources, "ConfigMap")[name]["data"]
            known |= {one["name"]: one.get("value", "") for one in container.get("env", [])}
            text = yaml.safe_dump([container.get("args"), container.get("lifecycle")])
            assert set(re.findall(r"\$\(?\"?(\w+)", text)) <= set(known)
            ports = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                for how in ("httpGet", "tcpSocket"):
                    assert container.get(probe, {}).get(how, {"port": "none"})["port"] in {*ports, "none"}
    for service in of_kind(resources, "Service").values():
        pod = next(
            one for one in pods(resources).values() if selected(service["spec"]["selector"], one["metadata"]["labels"])
        )
        ports = {port["name"] for container in containers(pod) for port in container.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@pytest.mark.parametrize("region", REGIONS)
def test_pods_can_do_no_more_than_they_need(region, overlays):
    for pod in pods(overlays[region]).values():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in containers(pod):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
            assert container["image"].startswith("registry.example.com/")
    gpus = [pod for name, pod in pods(overlays[region]).items() if name.startswith("gpu")]
    for pod in gpus:
        (server,) = pod["spec"]["containers"]
        assert server["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_a_pod_is_given_the_time_that_its_longest_job_takes(overlays):
    place = next(one for name, one in of_kind(overlays["us-east"], "ConfigMap").items() if name.startswith("place-"))
    leave_s, edge_s, job_s = (float(place["data"][name]) for name in ("LEAVE_S", "EDGE_DRAIN_S", "DISPATCHER_DRAIN_S"))
    grace = {name: pod["spec"]["terminationGracePeriodSeconds"] for name, pod in pods(overlays["us-east"]).items()}
    assert grace["edge"] > leave_s + edge_s
    assert edge_s > job_s  # an edge waits and tries again before the job
    assert grace["dispatcher"] > leave_s + job_s
    (server,) = pods(overlays["us-east"])["gpu"]["spec"]["containers"]
    assert grace["gpu"] > server["lifecycle"]["preStop"]["sleep"]["seconds"] + 200  # jobs.deadline_s
    assert job_s > 120 + 60  # STILLMOTION_DEADLINE_S and STILLMOTION_SEND_S


@pytest.mark.parametrize("region", REGIONS)
def test_commands_are_those_of_the_program(region, overlays, capsys):
    resources = overlays[region]
    maps = of_kind(resources, "ConfigMap")
    for pod in pods(resources).values():
        for container in containers(pod):
            if container.get("command", [])[:3] != ["python", "-m", "routing"]:
                continue
            known = {}
            for source in container["envFrom"]:
                known |= maps[source["configMapRef"]["name"]]["data"]
            known |= {one["name"]: one.get("value", "") for one in container.get("env", [])}
            arguments = [filled_in(one, known) for one in container["args"]]
            build_parser().parse_args([*container["command"][3:], *arguments])
            hook = container.get("lifecycle", {}).get("preStop")
            if hook is not None:
                script = filled_in(hook["exec"]["command"][2], known)
                assert script.startswith("exec python -m routing ")
                build_parser().parse_args(script.split()[4:])
    assert not capsys.readouterr().err


@pytest.mark.parametrize("region", REGIONS)
def test_an_edges_files_are_there_before_it_starts(region, overlays):
    for name, pod in pods(overlays[region]).items():
        if name.startswith("edge"):
            assert [one["name"] for one in containers(pod)] == ["files", "agent", "proxy"]
        if name.startswith("dispatcher"):
            assert [one["name"] for one in containers(pod)] == ["proxy"]


@pytest.fixture
def short_path():
    """A folder for sockets, whose paths have 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        yield folder


def test_dispatchers_of_a_region_have_gpu_servers_of_their_own(overlays):
    found = {}
    for name, config in of_kind(overlays["us-east"], "ConfigMap").items():
        if "haproxy.cfg" in config["data"]:
            found[name] = set(re.findall(r"server-template (\S+ \S+ \S+)", config["data"]["haproxy.cfg"]))
    assert found == {
        "dispatcher-files": {"gpu- 1-30 gpu.stillmotion.svc.cluster.local:3000"},
        "dispatcher-files-2": {"gpu- 1-10 gpu-2.stillmotion.svc.cluster.local:3000"},
    }
    services = of_kind(overlays["us-east"], "Service")
    assert services["gpu"]["spec"]["clusterIP"] == services["gpu-2"]["spec"]["clusterIP"] == "None"


@pytest.mark.parametrize("region", REGIONS)
def test_proxies_take_the_files_that_their_pods_have(
    region, overlays, programs, real_certificates, tmp_path, short_path
):
    for name, config in of_kind(overlays[region], "ConfigMap").items():
        if "haproxy.cfg" in config["data"]:
            text = real_certificates.placed(config["data"]["haproxy.cfg"])
            folder = tmp_path / name
            folder.mkdir()
            (folder / "haproxy.cfg").write_text(
                text.replace("/etc/stillmotion/files", str(folder)).replace("/run/stillmotion", str(short_path))
            )
            (folder / "dispatcher.lua").write_text(config["data"]["dispatcher.lua"])
            check_with_haproxy(programs.haproxy, folder)
        if "bootstrap.yaml" not in config["data"]:
            continue
        files = dict(config["data"])
        if name.startswith("edge"):
            keys = next(one for key, one in of_kind(overlays[region], "Secret").items() if key.startswith("edge-keys"))
            files |= real_certificates.decoded(keys)
        for file, text in files.items():
            (tmp_path / file).write_text(real_certificates.placed(text))
        check_with_envoy(programs.envoy, self_contained(tmp_path), name)


def test_the_regions_have_their_places_in_each_others_tables(overlays):
    for region in REGIONS:
        files = next(
            one["data"] for name, one in of_kind(overlays[region], "ConfigMap").items() if name.startswith("edge")
        )
        rows = yaml.safe_load(files["endpoints.yaml"])["resources"][0]["endpoints"]
        hosts = {
            (row["locality"]["zone"], host["endpoint"]["address"]["socket_address"]["address"])
            for row in rows
            for host in row["lb_endpoints"]
        }
        assert hosts == {("us-east", "10.1.0.11"), ("us-east", "10.1.0.12"), ("eu-west", "10.2.0.11")}
