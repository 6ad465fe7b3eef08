import pytest
import yaml

from routing.control.controller import Controller
from routing.control.publishing import EnvoyPublisher
from routing.metrics.observation import Target
from routing.metrics.pages import targets
from routing.proxies import write_fleet


@pytest.fixture
def fleet(make_fleet):
    return make_fleet(2, 2, 1)


@pytest.fixture
def publisher(fleet, tmp_path):
    write_fleet(tmp_path, fleet, Controller(fleet).at_home())
    return EnvoyPublisher(tmp_path, fleet)


def weights(tmp_path, region):
    content = yaml.safe_load((tmp_path / region / "edge" / "endpoints.yaml").read_text())
    return {
        group["locality"]["region"]: group["load_balancing_weight"]
        for group in content["resources"][0]["endpoints"]
        if group["priority"] == 0
    }


def test_a_table_goes_to_the_edges_whose_row_is_new_and_is_mended(fleet, publisher, tmp_path):
    home = Controller(fleet).at_home()
    assert publisher.publish(home, ()) == []
    moved = home.model_copy(update={"shares": {**home.shares, "a": {"a": 0.7, "b": 0.3}}})
    assert publisher.publish(moved, ()) == ["a/edge/endpoints.yaml"]
    assert weights(tmp_path, "a") == {"a": 700_000, "b": 300_000}
    assert publisher.publish(moved, ()) == []
    (tmp_path / "b" / "edge" / "endpoints.yaml").write_text("{")
    assert publisher.publish(moved, ()) == ["b/edge/endpoints.yaml"]


def test_delays_go_to_the_edges_that_they_are_new_for(publisher):
    assert publisher.set_delays({"a": 0.0, "b": 0.0, "c": 0.0}) == []
    assert publisher.set_delays({"a": 0.2, "b": 0.0, "c": 0.0}) == ["a/edge/runtime.yaml"]
    assert publisher.set_delays({"a": 0.2, "b": 0.0, "c": 0.0}) == []
    assert publisher.set_delays({"a": 0.0, "b": 0.0, "c": 0.0}) == ["a/edge/runtime.yaml"]


def test_retries_do_not_go_to_a_drained_region(fleet, publisher, tmp_path):
    def regions():
        content = yaml.safe_load((tmp_path / "a" / "edge" / "endpoints.yaml").read_text())
        return {group["locality"]["region"] for group in content["resources"][0]["endpoints"]}

    home = Controller(fleet).at_home()
    assert regions() == {"a", "b", "c"}
    publisher.publish(home, ("b",))
    assert regions() == {"a", "c"}


def test_proxies_are_asked_where_the_data_plane_says_they_are(fleet):
    found = targets(fleet)
    place = fleet.places()["a"]
    assert len(found) == 6
    assert found[Target("a", "edge", place.admin)] == f"http://{place.admin}/stats/prometheus"
    dispatcher = place.dispatchers[0].admin
    assert found[Target("a", "dispatcher", dispatcher)] == f"http://{dispatcher}/metrics"


def test_a_page_of_counters_for_other_machines_is_asked_instead_of_the_admin_page(make_fleet):
    dispatchers = [{"address": "10.0.0.2:8080", "servers": ["10.0.0.3:3000"]}]
    place = {"edge": "10.0.0.1:80", "metrics": "10.0.0.1:9102", "dispatchers": dispatchers}
    fleet = make_fleet(1, data_plane={"places": {"a": place}})
    assert targets(fleet) == {
        Target("a", "dispatcher", "10.0.0.2:9902"): "http://10.0.0.2:9902/metrics",
        Target("a", "edge", "10.0.0.1:9102"): "http://10.0.0.1:9102/metrics",
    }
