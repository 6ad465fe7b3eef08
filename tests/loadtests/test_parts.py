"""The form, the edges, failures on order, and the page: what surrounds a run."""

import argparse
import email
import io
import json
import re
import subprocess
import sys
from email.policy import HTTP
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from laboratory.simulate.scenario import Failure
from loadtests.cli import main
from loadtests.deployment import checked_url, deployment_by_file, local_deployment, unfit
from loadtests.faults import Hook
from loadtests.form import make_form
from loadtests.objective_kinds import parse_objective
from loadtests.options import add_arguments, prepare
from loadtests.report import page
from loadtests.result import document
from loadtests.verdict import judge
from loadtests.watch import Watch
from routing.errors import InputError, RoutingError
from routing.fleet import load_fleet


def fields(form):
    head = f"Content-Type: {form.content_type}\r\n\r\n".encode()
    message = email.message_from_bytes(head + form.body, policy=HTTP)
    return {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}


def test_the_form_is_one_that_servers_read():
    found = fields(make_form(None, "ein roter Kreis geht ↑"))
    picture = Image.open(io.BytesIO(found["image"].get_content()))
    assert (picture.format, picture.size) == ("PNG", (64, 64))
    assert picture.getpixel((32, 32)) == (0xD0, 0x30, 0x30)
    assert found["prompt"].get_content().strip() == "ein roter Kreis geht ↑"


def test_a_picture_of_ones_own_is_sent_as_it_is(tmp_path):
    path = tmp_path / "mine.png"
    Image.new("RGB", (8, 8)).save(path)
    assert fields(make_form(path, "x"))["image"].get_content() == path.read_bytes()


@pytest.mark.parametrize(("content", "said"), [(b"GIF89a", "is no PNG, JPEG or WebP"), (None, "cannot be read")])
def test_what_is_no_picture_is_named(tmp_path, content, said):
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        make_form(path, "x")


def options(*arguments):
    parser = Parser()
    add_arguments(parser)
    return parser.parse_args(list(map(str, arguments)))


class Parser(argparse.ArgumentParser):
    """As Locust's: it knows what belongs on the web page."""

    def add_argument(self, *names, include_in_web_ui=True, **more):
        assert isinstance(include_in_web_ui, bool)
        return super().add_argument(*names, **more)


ROOT = Path(__file__).resolve().parents[2]
FLEET = "docs/examples/small-fleet.yaml"
EDGES = [f"--edge={name}=http://127.0.0.1:1" for name in ("us-east", "us-west", "eu-west")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which fleet"),
        (["--fleet", FLEET], "no edge is known of us-east, us-west, eu-west; give --edge us-east=URL"),
        (["--fleet", FLEET, "--edge", "us-eas=http://x"], "us-eas is none of the regions; did you mean us-east"),
        (["--fleet", FLEET, "--edge", "us-east"], "should be REGION=URL"),
        (["--fleet", FLEET, "--edge", "us-east=ftp://x"], "ftp://x is no URL of a machine"),
        (["--fleet", FLEET, "--edge", "us-east=http://x/animate"], "is no URL of a machine"),
        (["--fleet", FLEET, "--fleet-folder", "x"], "not both"),
        (["--fleet-folder", "/nowhere"], "no fleet was started in"),
        (["--fleet", FLEET, *EDGES, "--scenario", "stedy"], "did you mean steady"),
        (["--fleet", FLEET, *EDGES, "--compress", "0"], "--compress: 0 is not from"),
        (["--fleet", FLEET, *EDGES, "--role", "hot"], "should be ROLE=REGION"),
        (["--fleet", FLEET, *EDGES, "--scenario", "region-loss"], "give --fault-hook COMMAND, or do it yourself"),
        (["--fleet", FLEET, *EDGES, "--prompt", " "], "--prompt: is empty"),
        (["--fleet", FLEET, *EDGES, "--verdict", "/nowhere/v.json"], "there is no folder /nowhere"),
    ],
)
def test_wrong_use_is_told_in_one_line(arguments, said, monkeypatch, small_fleet):  # noqa: ARG001
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError) as error:
        prepare(options(*arguments))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_remote_deployment_is_known_by_its_file_and_its_edges(monkeypatch, environment):
    monkeypatch.chdir(ROOT)
    with environment(STILLMOTION_API_KEY="a key of sixteen"):
        prepared = prepare(options("--fleet", FLEET, *EDGES, "--scenario", "hot-spot", "--role", "hot=eu-west"))
    assert prepared.headers == {"X-API-Key": "a key of sixteen"}
    assert prepared.roles["others"] == ("us-east", "us-west")
    assert prepared.deployment.edges["us-west"] == "http://127.0.0.1:1"
    assert {one.region for one in prepared.arrivals} == {"us-east", "us-west", "eu-west"}
    by_hand = prepare(options("--fleet", FLEET, *EDGES, "--scenario", "region-loss", "--faults-by-hand"))
    assert by_hand.breaker is None
    assert [one.region for one in by_hand.failures] == ["us-east", "us-west", "eu-west"]


def test_places_of_the_fleet_file_are_its_edges():
    path = ROOT / "docs" / "examples" / "data-plane.yaml"
    found = deployment_by_file(path, [], "http://127.0.0.1:9900")
    fleet = load_fleet(path)
    scheme = "https" if fleet.data_plane.tls else "http"
    assert found.edges == {name: f"{scheme}://{place.edge}" for name, place in fleet.data_plane.places.items()}


@pytest.mark.parametrize("url", ["https://[fd00::1]:8443", "http://edge.example.org", "http://10.0.0.1:80/"])
def test_urls_of_machines_are_kept(url):
    assert checked_url(url, "x") == url.rstrip("/")


def test_a_folder_without_a_fleet_is_named(tmp_path):
    with pytest.raises(InputError, match="no fleet was started in"):
        local_deployment(tmp_path)


def test_a_hook_is_told_what_and_where(tmp_path):
    script = tmp_path / "hook.py"
    script.write_text(
        "import os, sys\n"
        "seconds = os.environ['STILLMOTION_FAULT_SECONDS']\n"
        f"file = open({str(tmp_path / 'log')!r}, 'a')\n"
        "print(*sys.argv[1:], seconds, file=file)\n"
        "sys.exit(sys.argv[3] == 'mars' and 'there is no mars')\n"
    )
    hook = Hook(f"{sys.executable} {script}")
    loss, slow = Failure(at_s=1, region="us-east"), Failure(at_s=1, region="us-west", slowness=2.0)
    hook.begin(loss, 30.0)
    hook.end(loss)
    hook.begin(slow, 5.0)
    assert (tmp_path / "log").read_text() == "begin loss us-east 30\nend loss us-east 0\nbegin slow us-west 5\n"
    with pytest.raises(RoutingError, match="ended with 1: there is no mars"):
        hook.begin(Failure(at_s=1, region="mars"), 1.0)
    with pytest.raises(RoutingError, match="no-such-program"):
        Hook("no-such-program").begin(loss, 1.0)


def test_edges_that_cannot_be_reached_are_named(deployment):
    found = list(unfit(deployment, {}))
    assert len(found) == 3
    assert "the edge of us-east at http://127.0.0.1:9 cannot be reached" in found[0]


class Page(HTMLParser):
    """Collects what a page refers to, and its text."""

    def __init__(self, text):
        super().__init__()
        self.outside, self.text, self.tags = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.outside += [value for name, value in attrs if name in {"src", "href", "data"}]

    def handle_data(self, data):
        self.text += data


def result(recorded, fleet, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["--fleet", FLEET, *EDGES, "--scenario", "region-loss", "--faults-by-hand"]
    prepared = prepare(options(*arguments))
    run = recorded(fleet, duration_s=prepared.scenario.duration_s)
    run.add(200, "us-east", "us-east", at_s=(0, 50)).add(
        60, "us-east", "us-west", at_s=(10, 20), wait_s=1.0, attempts=3
    )
    run.add(5, "us-east", status=429, attempts=20, at_s=30.0).add(80, "eu-west", "eu-west", at_s=(0, 50))
    verdict = judge(run.run, [parse_objective({"kind": "failed", "at_most": 0.02}, "")], ["<b>late</b>"])
    return document(prepared, run.tally, run.run, verdict, Watch(""), 1)


def test_the_document_adds_up_and_is_json(recorded, small_fleet, monkeypatch):
    found = json.loads(json.dumps(result(recorded, small_fleet, monkeypatch), allow_nan=False))
    assert found["requests"] == 345 == sum(one["requests"] for one in found["regions"].values())
    assert found["failures"] == found["refused"] == 5
    assert sum(row["due"] for row in found["series"]) == 345
    assert sum(sum(row["served"].values()) + row["failed"] for row in found["series"]) == 345
    for row in found["shares"].values():
        assert sum(row.values()) == pytest.approx(1)
    assert found["in_region_share"] == pytest.approx(280 / 340)
    assert found["attempts"]["p99"] == 20
    assert found["verdict"] == "void"
    assert found["void"] == ["<b>late</b>"]


def test_the_page_stands_alone_and_shows_shares_over_time(recorded, small_fleet, monkeypatch):
    text = page(result(recorded, small_fleet, monkeypatch))
    found = Page(text)
    assert found.outside == []
    assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\(", text)
    assert "<b>late</b>" in found.text  # as text, and not as markup
    assert found.tags.count("svg") == 4  # two regions have requests: shares and latency
    assert found.tags.count("rect") == 12  # three failures in each
    assert "rolling region loss" in found.text


def test_a_scenario_of_other_regions_starts_no_fleet(scenario_file, tmp_path, capsys):
    scenario = scenario_file(traffic={"load": 0.4, "region_load": {"mars": 1.0}})
    status = main(["run", "--fleet", str(ROOT / FLEET), "--out", str(tmp_path / "x"), "--scenarios", str(scenario)])
    assert status == 2
    assert "traffic.region_load.mars: mars is no role of the scenario" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["plant", "nothing"], 2),
        (["plant", "no-backoff"], 2),
        (["plant", "no-backoff", "--folder", "/nowhere"], 2),
        (["run", "--fleet", "/nowhere.yaml", "--out", "x"], 2),
        (["run", "--fleet", FLEET, "--out", "x", "--scenarios", "nothing"], 2),
        (["run", "--fleet", FLEET, "--out", "x", "--plant", "nothing"], 2),
        (["scenarios"], 0),
        (["plant", "list", "--json"], 0),
    ],
)
def test_commands_tell_wrong_use_from_what_failed(arguments, status, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = [str(ROOT / one) if one == FLEET else one for one in arguments]
    assert main(arguments) == status
    said = capsys.readouterr()
    assert ("error: " in said.err) == (status == 2)
    assert len(said.err.splitlines()) <= 1
    assert list(tmp_path.iterdir()) == []


def test_locust_needs_nothing_of_a_fleet_or_a_model_to_send_requests():
    # Load tests run on machines that have neither.
    blocked = [
        "torch",
        "diffusers",
        "pipeline",
        "serving",
        "httpx",
        "aiohttp",
        "scipy",
        "numba",
        "starlette",
        "matplotlib",
    ]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import loadtests.loadtest, loadtests.pages"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_drill_without_what_fleets_need_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['httpx'] = None; from loadtests.cli import main\n"
        f"sys.exit(main(['run', '--fleet', {str(ROOT / FLEET)!r}, '--out', {str(tmp_path / 'x')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == "error: httpx is not installed: pip install 'stillmotion[loadtests]'\n"


def test_routing_knows_nothing_of_load_tests():
    named = [path for path in (ROOT / "routing").rglob("*.py") if "loadtests" in path.read_text(encoding="utf-8")]
    assert named == []
