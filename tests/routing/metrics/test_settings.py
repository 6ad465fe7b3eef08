import pytest

from routing.errors import InputError
from routing.fleet import load_fleet
from routing.metrics.targets import targets


@pytest.mark.parametrize(
    ("metrics", "error"),
    [
        ({"promtheus": "x"}, "metrics.promtheus: unknown key; did you mean prometheus?"),
        (
            {"prometheus": "localhost:9090"},
            "metrics.prometheus: should be an address such as http://10.1.0.5:9901, and is 'localhost:9090'",
        ),
        ({"prometheus": "http://h:99999"}, "metrics.prometheus: should be an address"),
        ({"prometheus": "http://h?x=1"}, "metrics.prometheus: should be an address"),
        ({"pages": {"us-eats": {}}}, "metrics.pages.us-eats: is none of the regions; did you mean us-east?"),
        (
            {"pages": {"us-east": {"gpu_servers": ["http://h"]}}},
            "metrics.pages.us-east.gpu_servers: are 1, and the region",
        ),
        (
            {"pages": {"us-east": {"edges": ["http://h", "http://h/"]}}},
            "metrics.pages.us-east.edges.1: http://h is edges.0",
        ),
        ({"pages": {"us-east": {"edges": ["ftp://h"]}}}, "metrics.pages.us-east.edges.0: should be an address"),
        ({"load": {}}, "metrics.load: should hold at least one"),
        ({"load": {"gpu": {"series": "a b"}}}, "metrics.load.gpu.series: should"),
        ({"load": {"gpu": {"series": "x", "limit": 0}}}, "metrics.load.gpu.limit: should be greater than 0"),
        ({"load": {"gpu": {"series": "x", "kind": "sum"}}}, "metrics.load.gpu.kind: should be 'counter' or 'gauge'"),
        ({"time_limit_s": -1}, "metrics.time_limit_s: should be greater than 0"),
        ({"cost_prior_requests": 0}, "metrics.cost_prior_requests: should be greater than 0"),
    ],
)
def test_a_mistake_in_the_section_is_named_with_its_key(fleet_file, metrics, error):
    path = fleet_file(lambda content: content.update(metrics=metrics))
    with pytest.raises(InputError) as caught:
        load_fleet(path)
    assert str(caught.value).startswith(f"{path}: {error}")


def test_a_machine_is_in_one_region_only(fleet_file):
    pages = {"us-east": {"edges": ["http://h"]}, "us-west": {"edges": ["http://h"]}}
    with pytest.raises(
        InputError, match=r"metrics\.pages\.us-west.edges\.0: http://h is metrics\.pages\.us-east\.edges\.0"
    ):
        load_fleet(fleet_file(lambda content: content.update(metrics={"pages": pages})))


def test_gpu_servers_of_some_regions_only_are_not_enough(fleet_file):
    pages = {"us-east": {"gpu_servers": [f"http://h:{port}" for port in range(1000, 1120)]}}
    fleet = load_fleet(fleet_file(lambda content: content.update(metrics={"pages": pages})))
    with pytest.raises(InputError, match=r"metrics\.pages\.us-west\.gpu_servers: is missing"):
        targets(fleet)
