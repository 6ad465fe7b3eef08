import pytest

from routing.errors import InputError
from routing.fleet import load_fleet
from routing.metrics.pages import targets


@pytest.mark.parametrize(
    ("metrics", "error"),
    [
        ({"promtheus": "x"}, "metrics.promtheus: unknown key; did you mean prometheus?"),
        (
            {"prometheus": "localhost:9090"},
            "metrics.prometheus.url: should be an address such as http://10.1.0.5:9901, and is 'localhost:9090'",
        ),
        ({"prometheus": "http://h:99999"}, "metrics.prometheus.url: should be an address"),
        ({"prometheus": "http://h?x=1"}, "metrics.prometheus.url: should be an address"),
        ({"pages": {"us-eats": {}}}, "metrics.pages.us-eats: is none of the regions; did you mean us-east?"),
        (
            {"pages": {"us-east": {"edges": ["http://h", "http://h/"]}}},
            "metrics.pages.us-east.edges.1: http://h is metrics.pages.us-east.edges.0 already",
        ),
        ({"pages": {"us-east": {"edges": ["ftp://h"]}}}, "metrics.pages.us-east.edges.0: should be an address"),
        ({"prometheus": {"url": "http://h", "tokn_file": "x"}}, "metrics.prometheus.tokn_file: unknown key; did you"),
        ({"prometheus": {"url": "http://h", "username": "x"}}, "metrics.prometheus.password_file: is missing; basic"),
        (
            {"prometheus": {"url": "http://h", "username": "x", "password_file": "y", "token_file": "z"}},
            "metrics.prometheus.token_file: and username are two ways in; give one",
        ),
        ({"prometheus": {"url": "http://h", "tenant": "a\nb"}}, "metrics.prometheus.tenant: should"),
        ({"time_limit_s": -1}, "metrics.time_limit_s: should be greater than 0"),
        ({"cost_prior_requests": 0}, "metrics.cost_prior_requests: should be greater than 0"),
    ],
)
def test_a_mistake_in_the_section_is_named_with_its_key(fleet_file, metrics, error):
    path = fleet_file(lambda content: content.update(metrics=metrics))
    with pytest.raises(InputError) as caught:
        load_fleet(path)
    assert str(caught.value).startswith(f"{path}: {error}")


def test_a_proxy_is_in_one_region_only(fleet_file):
    pages = {"us-east": {"edges": ["http://h"]}, "us-west": {"edges": ["http://h"]}}
    with pytest.raises(
        InputError, match=r"metrics\.pages\.us-west.edges\.0: http://h is metrics\.pages\.us-east\.edges\.0"
    ):
        load_fleet(fleet_file(lambda content: content.update(metrics={"pages": pages})))


def test_dispatchers_of_some_regions_only_are_not_enough(fleet_file):
    pages = {"us-east": {"dispatchers": ["http://h:9902"]}}
    fleet = load_fleet(fleet_file(lambda content: content.update(metrics={"pages": pages})))
    with pytest.raises(InputError, match=r"metrics\.pages\.us-west\.dispatchers: is missing"):
        targets(fleet)


def test_what_the_last_release_asked_of_gpu_servers_is_read_with_a_warning(fleet_file, capsys):
    pages = {"us-east": {"gpu_servers": ["http://g:3000"], "dispatchers": ["http://h:9902"]}}
    metrics = {"pages": pages, "load": {"gpu": {"series": "x"}}}
    load_fleet(fleet_file(lambda content: content.update(metrics=metrics)))
    text = capsys.readouterr().err
    assert "metrics.pages.us-east.gpu_servers has no effect any more: pages of dispatchers are read" in text
    assert "metrics.load has no effect any more" in text
