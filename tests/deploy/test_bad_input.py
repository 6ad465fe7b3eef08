"""What is wrong with the files of a fleet on Kubernetes is said in one line, before anything is written."""

import pytest


def changed(path, value):
    def change(operator):
        part = getattr(operator, path[0])
        for key in path[1:-1]:
            part = part[key]
        if value is None:
            del part[path[-1]]
        else:
            part[path[-1]] = value

    return change


PLACES = ("fleet", "data_plane", "places")
REGIONS = ("settings", "regions")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            changed(("settings", "images", "server"), "stillmotion:latest"),
            "kubernetes.yaml: images.server: stillmotion:",
        ),
        (changed(("settings", "images", "routing"), None), "images.routing: is missing"),
        (changed(("settings", "leave_s"), "soon"), "leave_s: should be a number, and is 'soon'"),
        (changed(("settings", "namespcae"), "x"), "namespcae: unknown key; did you mean namespace?"),
        (changed((*REGIONS, "us-east", "edges"), 0), "regions.us-east.edges: should be greater than or equal to 1"),
        (changed((*REGIONS, "us-east", "edges"), "three"), "regions.us-east.edges: should be a whole number"),
        (changed((*REGIONS, "us-east", "edges_from"), ["10.1.0.0/33"]), "edges_from.0: 10.1.0.0/33 is no network"),
        (changed((*REGIONS, "us-east", "edges_from"), None), "regions.us-east.edges_from: is missing"),
        (changed((*REGIONS, "eu-west"), None), "regions.eu-west: is missing, and the fleet has it"),
        (changed((*REGIONS, "eu-wset"), {}), "regions.eu-wset: is none of the fleet's; did you mean eu-west?"),
        (changed((*REGIONS, "eu-west", "control"), None), "regions.eu-west.control: is missing"),
        (changed(("settings", "control"), ["mars"]), "control.0: mars is none of the fleet's regions"),
        (changed(("settings", "control"), []), "control: should hold at least one"),
        (changed((*REGIONS, "us-east", "scaling", "least"), 50), "scaling.least: 50 is more than the fleet's 40 GPUs"),
        (changed(("settings", "front"), "istio"), "front: istio is gone: its table could not follow the traffic"),
        (
            changed((*REGIONS, "us-east", "scaling", "busy_share"), 0.75),
            "scaling.busy_share: 0.75 is not below the fleet's",
        ),
        (changed((*REGIONS, "sa-east", "scaling"), {"least": 1}), "regions.sa-east.scaling: the region has no GPUs"),
        (changed(("settings", "server"), {"PATH": "/bin"}), "server.PATH: PATH is none of the settings"),
        (
            changed(("settings", "server"), {"STILLMOTION_DEADLINE_S": "x"}),
            "server.STILLMOTION_DEADLINE_S: x is no number",
        ),
        (changed(("settings", "server"), {"STILLMOTION_DEADLINE_S": "180"}), "server: a job may take 240 s there"),
        (changed(("settings", "prometheus"), "prometheus:9090"), "prometheus: should be an address such as"),
        (
            changed(("fleet", "data_plane", "tracing", "collector"), "otel"),
            "tracing.collector: otel is no name or address",
        ),
        (changed(("fleet", "data_plane", "tracing", "share"), 2), "tracing.share: should be less than or equal to 1"),
        (changed(PLACES, None), "data_plane.places: is missing"),
        (
            changed(
                (*PLACES, "eu-west", "dispatchers", 0), {"address": "10.2.0.11:8444", "servers": ["10.2.1.1:3000"] * 1}
            ),
            "data_plane.places.eu-west.dispatchers: have 1 servers, and the region has 24 GPUs",
        ),
        (
            changed((*PLACES, "us-east", "dispatchers", 1, "address"), "10.2.0.11:8444"),
            "10.2.0.11:8444 is data_plane.places.",
        ),
        (changed((*PLACES, "us-east", "edge"), "0.0.0.0:443"), "0.0.0.0:443 is not the address of a load balancer"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(operator, capsys, change, text):
    change(operator)
    assert operator.render() == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not operator.out.exists()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("keys.yaml", "data_plane.api_keys"),
        ("certificates/edge.key", "data_plane.tls.key"),
        ("certificates/ca.pem", "data_plane.mutual_tls.ca"),
        ("certificates/peer.pem", "data_plane.mutual_tls.certificate"),
    ],
)
def test_a_secret_that_is_missing_is_named_and_nothing_is_written(operator, capsys, file, text):
    (operator.folder / file).unlink()
    assert operator.render() == 2
    error = capsys.readouterr().err
    assert f"{text}: {operator.folder / file}: no such file" in error
    assert error.count("\n") == 1
    assert not operator.out.exists()


def test_a_file_that_is_no_certificate_is_named(operator, capsys):
    (operator.folder / "certificates" / "edge.pem").write_text("hello")
    assert operator.render() == 2
    assert "data_plane.tls.certificate" in capsys.readouterr().err


def test_servers_that_are_named_do_not_fit_pods_that_come_and_go(operator, capsys):
    servers = [f"10.2.1.{i}:3000" for i in range(1, 25)]
    operator.fleet["data_plane"]["places"]["eu-west"]["dispatchers"] = [
        {"address": "10.2.0.11:8444", "servers": servers}
    ]
    assert operator.render() == 2
    assert "names servers, and those of Kubernetes come and go" in capsys.readouterr().err


def test_a_folder_that_is_no_base_is_refused(operator, capsys, tmp_path):
    assert operator.render("--base", str(tmp_path)) == 2
    assert "--base" in capsys.readouterr().err
    assert not operator.out.exists()


def test_keys_are_readable_by_their_owner_alone_and_kept_out_of_git(operator):
    assert operator.render() == 0
    secrets = [path for path in operator.out.rglob("secrets/*") if path.is_file()]
    assert {path.name for path in secrets} >= {"keys.yaml", "edge-tls.tls.key", "peer-tls.tls.key"}
    for path in secrets:
        assert path.stat().st_mode & 0o077 == 0
    assert "secrets/" in (operator.out / ".gitignore").read_text().splitlines()
    others = [path for path in operator.out.rglob("*") if path.is_file() and path.parent.name != "secrets"]
    assert not [path for path in others if "0123456789abcdef" in path.read_text()]


def test_what_should_be_known_is_said(operator, capsys):
    del operator.fleet["data_plane"]["mutual_tls"]
    assert operator.render() == 0
    assert (
        "note: without data_plane.mutual_tls requests go from region to region in plain text" in capsys.readouterr().err
    )


def test_a_fleet_of_one_region_needs_no_addresses_of_others(operator, kustomize, check):
    operator.fleet["regions"] = {"us-east": operator.fleet["regions"]["us-east"]}
    operator.fleet["data_plane"]["places"] = {"us-east": operator.fleet["data_plane"]["places"]["us-east"]}
    operator.fleet["data_plane"].pop("mutual_tls")
    operator.fleet["data_plane"].pop("api_keys")
    operator.settings["control"] = ["us-east"]
    operator.settings["regions"] = {"us-east": {}}
    operator.settings.pop("server")
    assert operator.render() == 0
    for one in kustomize(operator.out / "us-east"):
        check(one)
        if (one["kind"], one["metadata"]["name"]) == ("Service", "control"):
            assert one["spec"]["type"] == "ClusterIP"
