"""Resources of the other targets say what the table says, and are what their schemas take."""

from datetime import UTC, datetime

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.errors import InputError
from routing.fleet import Fleet
from routing.schema import validated
from routing.table import RoutingTable
from routing.targets import gateway_api, istio
from routing.targets.manifests import Place, duration
from routing.targets.render import write_target

NAMES = ("us-east", "us-west", "eu-west", "ap-south")


def table_of(shares):
    return RoutingTable(generated_at=datetime.now(UTC), shares=shares)


@st.composite
def fleets_and_tables(draw):
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    attempts, base = draw(st.integers(1, 20)), draw(st.floats(0.001, 100))
    content = {
        "regions": {name: {"gpus": draw(st.integers(1, 50))} for name in names},
        "latency_ms": {a: {b: 50 for b in names[i + 1 :]} for i, a in enumerate(names[:-1])},  # noqa: C420
        "service_time_s": 1.0,
        "rings_ms": [100],
        "thresholds": [{"load": 0.8, "ring": 1}],
        "target_load": 0.8,
        "retry": {
            "attempts": attempts,
            "base_interval_s": base,
            "max_interval_s": base * draw(st.floats(1, 50)),
            "delay": {"share": draw(st.sampled_from([0.0, 0.001, 0.5, 1.0])), "max_s": 0.5, "burst_share": 1.0},
        },
    }
    shares = {}
    for name in names:
        drawn = [draw(st.integers(0, 10)) for _ in names]
        total = sum(drawn) or 1
        shares[name] = {to: n / total for to, n in zip(names, drawn, strict=True) if n} or {name: 1.0}
    return validated(Fleet, content), table_of(shares)


@settings(max_examples=30)
@given(fleets_and_tables())
def test_any_table_is_what_istio_takes(check, case):
    fleet, table = case
    rule, service = istio.manifests(fleet, table, Place())
    check(rule)
    check(service)
    spread = rule["spec"]["trafficPolicy"]["loadBalancer"]["localityLbSetting"]["distribute"]
    assert [one["from"] for one in spread] == [f"{name}/*" for name in table.shares]
    assert {sum(one["to"].values()) for one in spread} == {100}
    retries = service["spec"]["http"][0]["retries"]
    assert retries["attempts"] == fleet.retry.attempts - 1
    assert "5xx" not in retries.get("retryOn", "")
    assert "fault" not in service["spec"]["http"][0]  # Istio would retry nothing


@settings(max_examples=30)
@given(fleets_and_tables())
def test_any_table_is_what_gateway_api_takes(check, case):
    fleet, table = case
    for name, row in table.shares.items():
        route, policy = gateway_api.manifests(fleet, table, Place(), name)
        check(route)
        check(policy)
        for rule in route["spec"]["rules"]:
            assert sum(backend["weight"] for backend in rule["backendRefs"]) == 100
            assert {backend["name"] for backend in rule["backendRefs"]} == {f"ingress-{to}" for to in row}
        assert policy["spec"]["targetRefs"][0]["name"] == route["metadata"]["name"]
        assert policy["spec"]["retry"]["numRetries"] == fleet.retry.attempts - 1
        assert ("faultInjection" in policy["spec"]) == (fleet.retry.delay.share > 0)


def test_a_field_that_a_schema_does_not_know_is_found(check, example_fleet):
    table = table_of({name: {name: 1.0} for name in example_fleet.names})
    rule, service = istio.manifests(example_fleet, table, Place())
    route, policy = gateway_api.manifests(example_fleet, table, Place(), "us-east")
    for manifest, path in (
        (rule, ("spec", "trafficPolicy", "loadBalancer", "localityLbSetting")),
        (service, ("spec", "http", 0, "retries")),
        (route, ("spec", "rules", 0, "backendRefs", 0)),
        (policy, ("spec", "retry", "perRetry", "backOff")),
    ):
        broken = yaml.safe_load(yaml.safe_dump(manifest))
        part = broken
        for key in path:
            part = part[key]
        part["wieght"] = 1
        with pytest.raises(AssertionError, match="wieght"):
            check(broken)


def test_files_hold_the_resources(tmp_path, example_fleet, check):
    table = table_of({name: {name: 1.0} for name in example_fleet.names})
    rendered = write_target("istio", tmp_path / "istio", example_fleet, table, Place("video", 80))
    assert [path.name for path in rendered.files] == ["istio.yaml"]
    rendered = write_target("gateway-api", tmp_path / "gateway", example_fleet, table, Place("video", 80))
    assert [path.stem for path in rendered.files] == list(example_fleet.names)
    found = [one for path in tmp_path.rglob("*.yaml") for one in yaml.safe_load_all(path.read_text())]
    assert len(found) == 2 + 2 * len(example_fleet.names)
    for one in found:
        check(one)
        assert one["metadata"]["namespace"] == "video"


def test_a_name_that_kubernetes_does_not_take_is_refused(example_fleet):
    name = "r" * 60
    with pytest.raises(InputError, match="at most 63 characters"):
        gateway_api.http_route(example_fleet, table_of({name: {name: 1.0}}), Place(), name)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "250ms"),
        (5, "5s"),
        (1.5, "1s500ms"),
        (222.75, "3m42s750ms"),
        (0.0001, "1ms"),
        (7200, "2h"),
        (0.3, "300ms"),
    ],
)
def test_durations_have_no_fractions(seconds, text):
    assert duration(seconds) == text
