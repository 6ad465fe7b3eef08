"""What the control loop publishes is what Envoys read."""

from datetime import UTC, datetime

import pytest
import yaml

from routing.control.envoy import EnvoyPublisher
from routing.envoy.folders import ENDPOINTS, RUNTIME, edge_folder, ingress_folder, write_fleet
from routing.table import RoutingTable


@pytest.fixture
def published(make_fleet, tmp_path):
    """A fleet's files, and the publisher of them."""
    fleet = make_fleet(2, 2, 2)
    home = RoutingTable(generated_at=datetime.now(UTC), shares={name: {name: 1.0} for name in fleet.names})
    write_fleet(tmp_path, fleet, home)
    return fleet, EnvoyPublisher(tmp_path, fleet)


def resources(path):
    return yaml.safe_load(path.read_text())["resources"][0]


def test_a_table_is_written_for_each_edge_once(published, tmp_path):
    _, publisher = published
    shares = {"a": {"a": 0.5, "b": 0.5}, "b": {"b": 1.0}, "c": {"c": 1.0}}
    table = RoutingTable(version=2, generated_at=datetime.now(UTC), shares=shares)
    assert publisher.publish(table) == ["endpoints of a"]
    assert publisher.publish(table) == []
    found = resources(edge_folder(tmp_path, "a") / ENDPOINTS)["endpoints"]
    weights = {one["locality"]["zone"]: one["load_balancing_weight"] for one in found if not one.get("priority")}
    assert weights == {"a": 500_000, "b": 500_000}


def test_what_another_hand_has_spoilt_is_written_again(published, tmp_path):
    _, publisher = published
    shares = {name: {name: 1.0} for name in "abc"}
    table = RoutingTable(version=2, generated_at=datetime.now(UTC), shares=shares)
    publisher.publish(table)
    path = edge_folder(tmp_path, "b") / ENDPOINTS
    sound = path.read_text()
    path.write_text("nonsense: [")
    assert publisher.publish(table) == ["endpoints of b"]
    assert path.read_text() == sound


def test_delays_and_ready_servers_are_live_values(published, tmp_path):
    fleet, publisher = published
    assert publisher.set_delays({"a": 0.2, "b": 0.0, "c": 0.0}) == ["delay of a"]
    values = resources(edge_folder(tmp_path, "a") / RUNTIME)["layer"]
    assert 200_000 in [one.get("numerator") for one in values.values() if isinstance(one, dict)]
    publisher.set_ready("b", fleet.places()["b"].servers[:1])
    assert list(resources(ingress_folder(tmp_path, "b") / RUNTIME)["layer"].values()) == [1]
