"""What is laid out and started, before anything is."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from laboratory.local.layout import PROXIES, Layout, ports_needed
from laboratory.local.programs import StandIns, bentoml_servers, control_loop, prometheus, proxies, stand_ins
from routing.dispatcher.binary import HAProxy
from routing.envoy.binary import Envoy
from routing.fleet import load_fleet
from routing.metrics.pages import targets
from routing.proxies import Programs, write_fleet
from routing.table import RoutingTable


@pytest.fixture
def laid_out(fleet_file, tmp_path):
    def make(change=None, service_time_s=0.5):
        fleet = load_fleet(fleet_file(change))
        return Layout.of(fleet, tmp_path, 21_000, tmp_path / "base", service_time_s)

    return make


def two(content):
    content["regions"] = {"us-east": {"gpus": 2}, "users-only": {"gpus": 0}}
    content["latency_ms"] = {"us-east": {"users-only": 30}}


def test_every_part_has_a_port_of_its_own_in_one_row(laid_out):
    layout = laid_out()
    addresses = [layout.control, layout.prometheus]
    for place in layout.places.values():
        addresses += [place.edge, place.admin, *place.servers]
        addresses += [part for one in place.dispatchers for part in (one.address, one.admin)]
    ports = sorted(int(address.rpartition(":")[2]) for address in addresses)
    assert ports == list(range(21_000, 21_000 + len(ports)))
    assert ports_needed(layout.fleet) == len(ports)


def test_the_fleet_file_of_this_machine_is_read_again_and_knows_all_proxies(laid_out):
    layout = laid_out(two)
    again = load_fleet(layout.write_fleet_file())
    assert again == layout.fleet
    assert again.service_time_s == 0.5
    found = {(proxy.region, proxy.tier) for proxy in targets(again)}
    assert found == {("us-east", "dispatcher"), ("us-east", "edge"), ("users-only", "edge")}


def test_places_and_paths_of_the_given_file_are_left_aside_or_made_absolute(laid_out, tmp_path):
    def change(content):
        two(content)
        content["metrics"] = {"prometheus": "http://10.0.0.1:9090"}
        content["data_plane"] = {
            "places": {
                "us-east": {
                    "edge": "10.0.0.1:443",
                    "dispatchers": [{"address": "10.0.0.2:8443", "servers": ["10.0.0.3:3000", "10.0.0.4:3000"]}],
                },
                "users-only": {"edge": "10.0.0.5:443"},
            },
            "tls": {"certificate": "edge.pem", "key": "/keys/edge.key"},
            "api_keys": "keys.yaml",
        }

    layout = laid_out(change)
    assert layout.scheme == "https"
    plane = layout.fleet.data_plane
    assert plane.tls.certificate == str(tmp_path / "base" / "edge.pem")
    assert plane.tls.key == "/keys/edge.key"
    assert plane.api_keys == str(tmp_path / "base" / "keys.yaml")
    assert all(place.edge.startswith("127.0.0.1:") for place in layout.places.values())
    assert layout.fleet.metrics.prometheus is None


def test_few_stand_ins_have_a_process_each_and_many_share_one_by_region(laid_out):
    few = list(stand_ins(laid_out(two), StandIns("0.5")))
    assert [one.name for one in few] == ["gpu-us-east-1", "gpu-us-east-2"]
    many = list(stand_ins(laid_out(), StandIns("0.5")))
    assert [one.name for one in many] == [f"gpus-{name}" for name in laid_out().fleet.names]
    assert sum(len(one.ports) for one in many) == 400


def test_a_region_without_gpus_has_an_edge_alone(laid_out):
    layout = laid_out(two)
    shares = {name: {"us-east": 1.0} for name in layout.fleet.names}
    table = RoutingTable(generated_at=datetime.now(UTC), shares=shares)
    programs = Programs(Envoy(layout.folder / "envoy"), HAProxy(layout.folder / "haproxy", "2.8.25"))
    found = list(proxies(layout, programs, write_fleet(layout.folder, layout.fleet, table)))
    assert [one.name for one in found] == ["edge-us-east", "dispatcher-us-east", "edge-users-only"]
    assert {one.kind: one.stage for one in found} == {"edge": 2, "dispatcher": 1}


def test_the_control_loop_publishes_where_the_edges_look(laid_out):
    layout = laid_out(two)
    one = control_loop(layout, 2.0)
    assert one.command[:4] == (sys.executable, "-m", "routing", "control")
    assert one.command[one.command.index("--envoy") + 1] == str(layout.folder / PROXIES)
    assert one.ports == (21_000,)
    assert control_loop(layout, 2.0, ("other",)).command[0] == "other"


def test_real_servers_have_a_home_each_with_the_models_of_the_store(laid_out, tmp_path, monkeypatch):
    store = tmp_path / "store"
    (store / "models").mkdir(parents=True)
    monkeypatch.setenv("BENTOML_HOME", str(store))
    found = list(bentoml_servers(laid_out(two), "animator:one"))
    homes = {one.environment["BENTOML_HOME"] for one in found}
    assert len(homes) == 2
    for one in found:
        assert one.environment["STILLMOTION_MODEL"] == "animator:one"
        assert one.environment["STILLMOTION_REGION"] == "us-east"
        assert (Path(one.environment["BENTOML_HOME"]) / "models").resolve() == store / "models"
    assert len(list(bentoml_servers(laid_out(two), None))) == 2  # a second time over what is there


def test_a_prometheus_is_started_where_one_is_installed(laid_out, tmp_path, monkeypatch):
    layout = laid_out(two)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prometheus(layout) is None
    program = tmp_path / "prometheus"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    one = prometheus(layout)
    assert one.command[0] == str(program)
    assert "127.0.0.1:21001" in " ".join(one.command)
    assert "us-east" in (tmp_path / "prometheus.yml").read_text()
    assert one.ports == (21_001,)
