"""What a fleet file says of its proxies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.data_plane import LAST_PORT, host_and_port, loopback_places
from routing.errors import InputError
from routing.fleet import load_fleet

PLACES = {
    "a": {
        "edge": "203.0.113.1:443",
        "dispatchers": [{"address": "10.0.0.1:8443", "servers": ["10.0.1.1:3000", "10.0.1.2:3000"]}],
    },
    "b": {"edge": "[2001:db8::1]:443", "dispatchers": [{"address": "10.1.0.1:8443", "servers": ["10.1.1.1:3000"]}]},
}


def two_regions(content):
    content["regions"] = {"a": {"gpus": 2}, "b": {"gpus": 1}}
    content["latency_ms"] = {"a": {"b": 30}}
    content["data_plane"] = {"places": PLACES}


def with_plane(**data_plane):
    def change(content):
        two_regions(content)
        content["data_plane"] |= data_plane

    return change


def with_jobs(**jobs):
    def change(content):
        two_regions(content)
        content["jobs"] = jobs

    return change


def test_places_are_as_the_file_has_them(fleet_file):
    places = load_fleet(fleet_file(two_regions)).places()
    assert places["a"].servers == ("10.0.1.1:3000", "10.0.1.2:3000")
    assert places["a"].admin == "127.0.0.1:9901"
    assert host_and_port(places["b"].edge) == ("2001:db8::1", 443)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 300), min_size=1, max_size=10))
def test_without_places_a_fleet_is_on_this_machine_with_a_port_for_each_part(gpus):
    places = loopback_places(gpus, 21_000)
    found = []
    for name, place in places.items():
        assert len(place.servers) == gpus[name]
        assert bool(place.dispatchers) == (gpus[name] > 0)
        found += [place.edge, place.admin, *place.servers]
        found += [address for ingress in place.dispatchers for address in (ingress.address, ingress.admin)]
    assert len(set(found)) == len(found)
    for address in found:
        host, port = host_and_port(address)
        assert host == "127.0.0.1"
        assert 21_000 <= port <= LAST_PORT


def test_a_fleet_that_is_too_large_for_the_ports_of_one_machine_is_told_so(fleet_file):
    def change(content):
        content["regions"]["us-east"]["gpus"] = 12_000

    fleet = load_fleet(fleet_file(change))
    with pytest.raises(InputError, match=r"data_plane\.first_port: .* do not end by 32767; give the places"):
        fleet.places()


def changed(path, value):
    def change(content):
        two_regions(content)
        part = content["data_plane"]["places"] = {name: {**place} for name, place in PLACES.items()}
        part["a"] = {**PLACES["a"], "dispatchers": [dict(PLACES["a"]["dispatchers"][0])]}
        *way, last = path
        for key in way:
            part = part[key]
        part[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            changed(["a", "edge"], "edge.example.com:443"),
            "data_plane.places.a.edge: edge.example.com:443 is no IP",
        ),
        (changed(["a", "edge"], "10.0.0.1"), "data_plane.places.a.edge: 10.0.0.1 is no IP address with a port"),
        (changed(["a", "edge"], "10.0.0.1:0"), "data_plane.places.a.edge: 10.0.0.1:0 is no IP address with a port"),
        (changed(["a", "edge"], "10.0.0.1:99999"), "data_plane.places.a.edge"),
        (changed(["a", "edge"], 443), "data_plane.places.a.edge"),
        (changed(["a", "admin"], "10.0.0.1:9901"), "data_plane.places.a.admin: 10.0.0.1:9901 can be reached from"),
        (
            changed(["a", "dispatchers"], [{"address": f"10.0.0.1:{port}", "gpus": 1} for port in (1, 2)]),
            "data_plane.places.a.dispatchers.1.admin: 10.0.0.1:9902 is another dispatcher's",
        ),
        (
            changed(["a", "dispatchers", 0, "servers"], ["10.0.1.1:3000"] * 2),
            "dispatchers.0.servers.1: 10.0.1.1:3000 is",
        ),
        (changed(["a", "dispatchers", 0, "servers"], ["10.0.1.1:3000"]), "have 1 servers, and the region has 2 GPUs"),
        (
            changed(["a", "dispatchers", 0, "gpus"], 2),
            "dispatchers.0.gpus: counts servers that come and go, and there are",
        ),
        (changed(["a", "dispatchers", 0], {"address": "10.0.0.1:8443"}), "servers: is missing; or give `gpus`"),
        (
            changed(["a", "dispatchers", 0], {"address": "10.0.0.1:8443", "gpus": 3}),
            "have 3 servers, and the region has 2",
        ),
        (changed(["c"], PLACES["b"]), "data_plane.places.c: is none of the regions"),
        (changed(["a", "edges"], []), "data_plane.places.a.edges: unknown key; did you mean edge?"),
        (with_jobs(body_limit="17 mice"), "jobs.body_limit: 17 mice is no size, such as 17MiB or 512KiB"),
        (with_jobs(body_limit="2GiB"), "jobs.body_limit: 2GiB is not between 1 byte and 1GiB"),
        (with_jobs(paths=["/a b"]), "jobs.paths.0: /a b is no path of letters, digits and . _ ~ -"),
        (with_jobs(paths=["/a", "/a"]), "jobs.paths.1: /a is there twice"),
        (with_jobs(deadline_s=0), "jobs.deadline_s: should be greater than 0"),
        (with_plane(rate_limit={"rps": 1.0}), "data_plane.rate_limit: is for each API key; give api_keys too"),
        (with_plane(limits={"heap": 1}), "data_plane.limits.heap: unknown key; did you mean heap_mb?"),
        (with_plane(first_port=40_000), "data_plane.first_port"),
        (with_plane(tls={"certificate": "a.pem"}), "data_plane.tls.key: is missing"),
        (with_plane(tls={"cert": "a", "key": "b"}), "data_plane.tls.cert: unknown key; known are certificate, key"),
        (with_plane(mutual_tls={"certificate": "a", "key": "b"}), "data_plane.mutual_tls.ca: is missing"),
        (with_plane(api_keys=""), "data_plane.api_keys"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(fleet_file, change, error):
    with pytest.raises(InputError) as caught:
        load_fleet(fleet_file(change))
    assert error in str(caught.value)


def test_servers_that_come_and_go_are_counted(fleet_file):
    def change(content):
        changed(["a", "dispatchers", 0], {"address": "10.0.0.1:8443", "gpus": 2})(content)

    place = load_fleet(fleet_file(change)).places()["a"]
    assert place.servers == ()
    assert [one.size for one in place.dispatchers] == [2]


def test_places_are_for_all_regions_or_none(fleet_file):
    def change(content):
        two_regions(content)
        content["data_plane"]["places"] = {"a": PLACES["a"]}

    with pytest.raises(InputError, match=r"data_plane\.places\.b: is missing; give the places of all"):
        load_fleet(fleet_file(change))


def test_a_file_of_the_last_release_is_read_with_a_warning_for_each_key_to_change(fleet_file, capsys):
    def change(content):
        two_regions(content)
        behind = {"address": "10.0.0.1:8443", "gpus": 2, "admin": "127.0.0.1:9902", "metrics": "10.0.0.1:9904"}
        places = {"a": {"edge": "203.0.113.1:443", "ingresses": [behind]}, "b": PLACES["b"]}
        content["data_plane"] = {"places": places, "limits": {"job_s": 30.0, "body_mb": 2}}

    fleet = load_fleet(fleet_file(change))
    assert (fleet.jobs.deadline_s, fleet.jobs.body_bytes) == (30.0, 2 * 2**20)
    assert fleet.places()["a"].dispatchers[0].admin == "10.0.0.1:9904"
    told = capsys.readouterr().err
    assert "data_plane.limits.job_s is called jobs.deadline_s now" in told
    assert "data_plane.places.a.ingresses is called data_plane.places.a.dispatchers now" in told
    assert "fleet.yaml: " in told


def test_an_old_and_a_new_key_for_the_same_thing_are_refused(fleet_file):
    def change(content):
        two_regions(content)
        content["data_plane"]["limits"] = {"job_s": 30.0}
        content["jobs"] = {"deadline_s": 20.0}

    with pytest.raises(InputError, match=r"data_plane\.limits\.job_s: unknown key"):
        load_fleet(fleet_file(change))


def test_the_example_with_all_settings_is_a_fleet(examples):
    fleet = load_fleet(examples / "data-plane.yaml")
    assert fleet.places()["us-east"].servers[-1] == "10.1.1.4:3000"
    assert set(fleet.data_plane.model_fields_set) == set(type(fleet.data_plane).model_fields) - {"first_port"}
    assert set(fleet.data_plane.limits.model_fields_set) == set(type(fleet.data_plane.limits).model_fields)
    assert fleet.data_plane.limits == type(fleet.data_plane.limits)()
    assert fleet.jobs == type(fleet.jobs)()  # the example shows the defaults
