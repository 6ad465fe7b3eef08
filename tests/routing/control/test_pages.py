import json
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from prometheus_client.parser import text_string_to_metric_families

from routing.control.journal import Journal
from routing.control.loop import Snapshot
from routing.control.status import Exported, status
from routing.control.web import listening, render
from routing.errors import InputError, RoutingError
from routing.metrics.observation import Observation, RegionSeen

NOW = datetime(2025, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def snapshot(fluid):
    """After a step in demand, on the way, with a region that has not been heard of."""
    fleet = fluid((40, 40, 40), (1.5, 0.4, 0.4)).run(30)
    fleet.silent = {"c"}
    fleet.run(24)
    decision = fleet.decisions[-1]
    table = fleet.controller.at_home().model_copy(
        update={"version": 7, "generated_at": NOW, "shares": decision.rows, "moves": decision.moves}
    )
    seen = {
        "a": RegionSeen(119.5, 2.0, 6.0, 80.0, 39, 1, 0.93, 12.0, 0.5),
        "b": RegionSeen(32.0, 2.0, 0.0, 80.0, 40, 0, 0.71, 0.0, 0.5),
    }
    regions = {name: replace(one, seen=seen.get(name, one.seen)) for name, one in fleet.state.regions.items()}
    state = replace(fleet.state, regions=regions)
    observation = Observation(seen, {"a": {"a": 70.0, "b": 30.0}})
    return fleet, Snapshot(table, state, decision, observation, rounds=27, tables=6, well_at=90.0, begun_at=90.0)


@pytest.fixture
def journal():
    found = Journal(None, lambda: NOW, lambda _: None)
    found.note("metrics", "<script>alert(1)</script> a gpu & more")
    return found


@pytest.fixture
def shown(snapshot, journal):
    fleet, state = snapshot
    return status(fleet.fleet, state, journal, 91.5, 2.0)


class Outline(HTMLParser):
    """Tags that are open, the text of cells, and addresses that a page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href"}]
        if tag not in {"meta", "link", "br", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_refers_to_nothing_from_elsewhere(shown):
    page = Outline()
    page.feed(render(shown))
    assert page.open == []
    assert "script" not in page.tags
    assert page.links == ["/status.json", "/metrics"]
    text = "".join(page.text)
    for expected in (
        "Table 7",
        "The table follows the traffic",
        "not heard of",
        "93 %",
        "39 of 40",
        "1 missing",
        "+1.3 %",
    ):
        assert expected in text
    assert "<script>alert(1)</script> a gpu & more" in text
    assert shown.moves[-1].why in text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"failure": "RuntimeError: <b>"}, "The last round failed. RuntimeError: <b>"),
        ({"frozen": "2 of 3 regions not heard of for 15 s"}, "Frozen: 2 of 3 regions not heard of for 15 s"),
        ({"not_ready": "warming up: a not watched for long enough"}, "Not ready: warming up: a not watched"),
        ({"switches": "b is drained"}, "Switched: b is drained"),
    ],
)
def test_the_page_says_when_the_table_does_not_follow(shown, change, text):
    page = Outline()
    page.feed(render(type(shown)(**(vars(shown) | change))))
    assert text in "".join(page.text)


def test_before_the_first_round_everything_can_be_shown(fluid, journal):
    fleet = fluid((4, 4), (0.5, 0.5))
    state = fleet.controller.start(fleet.controller.at_home().shares)
    found = status(fleet.fleet, Snapshot(fleet.controller.at_home(), state), journal, 0.0, 2.0)
    assert "no round has ended yet" in render(found)
    assert found.not_ready == "no round has ended yet"
    json.dumps(found.to_dict(), allow_nan=False)
    exported = Exported()
    exported.update(found, 0.1, ())
    assert b'stillmotion_routing_capacity_rps{region="a"} 8.0' in exported.page(None)


def test_what_prometheus_sees(shown):
    exported = Exported()
    exported.update(shown, 0.2, ["late", "late", "frozen"])
    exported.update(type(shown)(**(vars(shown) | {"failed_rounds": 1, "tables": 8})), 0.2, ["late"])
    samples = {
        (sample.name.removeprefix("stillmotion_routing_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(exported.page(1.5).decode())
        for sample in family.samples
    }
    assert samples["rounds_total", "ok"] == samples["rounds_total", "failed"] == 1
    assert samples["tables_total",] == 8
    assert samples["scrape_problems_total", "late"] == 2
    assert samples["share", "a", "a"] == shown.shares["a"]["a"]
    assert samples["served_rps", "b", "a"] == 30.0  # labels by name: destination, source
    assert (samples["load", "b"], samples["waiting", "a"]) == (0.71, 12.0)
    assert (samples["gpus", "a"], samples["gpus_missing", "a"]) == (40, 1)
    assert samples["region_stale", "c"] == 1
    assert samples["gpus_ready", "a"] == 39
    assert samples["last_good_round_age_seconds",] == 1.5
    assert samples["table_version",] == 7
    assert samples["frozen",] == 0


@pytest.mark.parametrize("address", ["", "9900", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_named(address):
    with pytest.raises(InputError, match="is no host and port"):
        listening(address)


def test_a_port_that_is_taken_is_named(fake_server):
    with pytest.raises(RoutingError, match=r"cannot listen on 127\.0\.0\.1:\d+ \(Address already in use\); choose"):
        listening(fake_server((200, "")).address)
