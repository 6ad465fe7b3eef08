import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from routing.control.controller import Controller
from routing.control.journal import Journal
from routing.control.loop import ASSURE_EVERY_S, Loop
from routing.control.publishing import FolderPublisher, Publishers, last_good
from routing.control.rows import Row
from routing.control.switches import Switches
from routing.errors import RoutingError
from routing.metrics.observation import Kind, Observation, RegionSeen, ScrapeProblem
from routing.table import RoutingTable

NOW = datetime(2025, 1, 31, 12, tzinfo=UTC)


class Bench:
    """A loop on a clock of the test's own, with metrics as the test says."""

    def __init__(self, fleet, folder, publishers=(), controller=None):
        self.fleet, self.folder = fleet, folder
        self.now, self.wall = 100.0, NOW
        self.demand = {name: 0.5 * fleet.capacity_rps(name) for name in fleet.names}
        self.problems, self.problem = (), None
        self.said = []
        controller = controller or Controller(fleet)
        first = controller.at_home().model_copy(update={"generated_at": NOW})
        self.journal = Journal(folder / "decisions.jsonl", lambda: self.wall, self.said.append)
        self.loop = Loop(
            controller,
            self,
            Publishers([FolderPublisher(folder), *publishers]),
            self.journal,
            last_good(folder / "table.json", fleet, first),
            interval_s=2.0,
            switches=Switches(folder, fleet, self.journal),
            clock=lambda: self.now,
            wall=lambda: self.wall,
        )

    async def collect(self):
        if self.problem is not None:
            raise self.problem
        regions = {
            name: RegionSeen(
                demand_rps=rps,
                over_s=2.0,
                capacity_rps=self.fleet.capacity_rps(name),
                gpus_ready=40,
            )
            for name, rps in self.demand.items()
        }
        return Observation(regions, problems=self.problems)

    def start(self):
        asyncio.run(self.loop.run(asyncio.Event(), rounds=1))
        return self

    def rounds(self, count):
        async def go():
            for _ in range(count):
                self.now += 2.0
                self.wall += timedelta(seconds=2)
                await self.loop.round()

        asyncio.run(go())
        return self.loop.snapshot

    def table(self):
        return RoutingTable.read(self.folder / "table.json", self.fleet)

    def events(self, *names):
        lines = (self.folder / "decisions.jsonl").read_text().splitlines()
        return [event for line in lines if (event := json.loads(line))["event"] in names]


@pytest.fixture
def bench(make_fleet, tmp_path):
    return lambda *publishers, **more: Bench(make_fleet(40, 40, 40), tmp_path, publishers, **more)


def test_a_table_is_there_from_the_start_even_if_no_metrics_are(bench):
    found = bench()
    found.problem = RuntimeError("nothing\nis well")
    found.start()
    assert found.table().shares["a"] == {"a": 1.0}
    assert json.loads((found.folder / "delays.json").read_text()) == {"share": {"a": 0.0, "b": 0.0, "c": 0.0}}
    assert found.said[-2] == "round_failed: RuntimeError: nothing is well"


def test_what_is_decided_is_published_with_its_reasons(bench):
    found = bench().start()
    found.demand["a"] = 120.0
    snapshot = found.rounds(60)
    table = found.table()
    assert table == snapshot.table
    assert table.version == 1 + snapshot.tables > 3
    assert table.shares["a"]["a"] < 0.7
    events = found.events("table")
    assert [event["version"] for event in events] == list(range(2, table.version + 1))
    assert events[0]["changes"][0].keys() == {"source", "to", "before", "after"}
    assert "a" in events[-1]["why"]
    assert events[-1]["why"]["a"][0] == table.moves[0].why
    assert events[0]["demand_rps"]["b"] == pytest.approx(40.0)


@pytest.mark.parametrize("error", [RuntimeError("x"), ZeroDivisionError("y"), RoutingError("z"), AssertionError()])
def test_an_error_in_a_round_is_one_line_and_the_next_round_goes_on(bench, error):
    found = bench().start()
    found.rounds(10)
    found.problem = error
    snapshot = found.rounds(3)
    assert (snapshot.failed, snapshot.rounds) == (3, 14)
    assert snapshot.failure.startswith(type(error).__name__)
    assert len(found.events("round_failed")) == 3
    found.problem = None
    snapshot = found.rounds(1)
    assert (snapshot.failed, snapshot.failure) == (3, "")


def test_a_planner_that_fails_leaves_the_table_as_it_is(make_fleet, tmp_path):
    fleet = make_fleet(40, 40, 40)
    good = Controller(fleet)

    def planner(fleet, load):
        if load.demand_rps["a"] > 60:
            raise ValueError("no plan for so much")
        return good.planner(fleet, load)

    found = Bench(fleet, tmp_path, controller=Controller(fleet, planner)).start()
    found.rounds(10)
    before = found.table()
    found.demand["a"] = 120.0
    assert found.rounds(30).failed > 20
    assert found.table() == before


class Stubborn:
    """A publisher that fails as long as it is told to."""

    def __init__(self):
        self.fails, self.no_delays = False, False
        self.seen, self.delays = [], []

    def publish(self, table, drained):
        if self.fails:
            raise RoutingError("the disk is full")
        self.seen.append(table)
        return ()

    def set_delays(self, shares):
        if self.no_delays:
            raise RoutingError("no delays today")
        self.delays.append(dict(shares))
        return ()


def test_a_table_that_cannot_be_published_is_decided_again_until_it_can(bench):
    stubborn = Stubborn()
    found = bench(stubborn).start()
    found.rounds(10)
    found.demand["a"] = 120.0
    stubborn.fails = True
    snapshot = found.rounds(20)
    assert snapshot.failure == "could not publish: the disk is full"
    assert snapshot.state.rows["a"]["a"] == pytest.approx(1.0)
    assert snapshot.table.version == 1
    demand = snapshot.state.regions["a"].demand.value
    assert demand > 100  # what was learnt meanwhile is kept
    stubborn.fails = False
    snapshot = found.rounds(1)
    assert snapshot.failure == ""
    assert stubborn.seen[-1].shares["a"]["a"] == pytest.approx(0.8)  # one largest step, not all that was missed
    assert found.table() == snapshot.table == stubborn.seen[-1]


def test_a_delay_that_cannot_be_set_leaves_the_new_table_in_use_and_is_set_later(bench):
    stubborn = Stubborn()
    found = bench(stubborn).start()
    found.rounds(10)
    found.demand["a"] = 400.0  # a burst, and soon a new table
    stubborn.no_delays = True
    snapshot = found.rounds(4)
    assert snapshot.failed == 4
    assert snapshot.table.version == found.table().version > 1
    assert snapshot.state.rows["a"] == dict(snapshot.table.shares["a"])
    stubborn.no_delays = False
    assert found.rounds(1).failure == ""
    assert stubborn.delays[-1]["a"] == 0.2


def test_what_another_hand_has_spoilt_is_written_again(bench):
    found = bench().start()
    found.rounds(3)
    before = found.table()
    for text in ("", "{", before.to_json().replace('"version": 1', '"version": 9')):
        (found.folder / "table.json").write_text(text)
        found.rounds(1 + round(ASSURE_EVERY_S / 2))
        assert found.table() == before
    (found.folder / "table.json").unlink()
    (found.folder / "delays.json").unlink()
    found.rounds(1 + round(ASSURE_EVERY_S / 2))
    assert found.table() == before
    assert [event["files"] for event in found.events("mended")] == [["table.json"]] * 3 + [
        ["table.json", "delays.json"]
    ]


def test_a_wall_clock_that_jumps_changes_no_decision(make_fleet, tmp_path):
    folders = [tmp_path / name for name in ("steady", "jumping")]
    shares = []
    for folder in folders:
        folder.mkdir()
        found = Bench(make_fleet(40, 40, 40), folder).start()
        for i in range(40):
            found.demand["a"] = 120.0 if i > 10 else 40.0
            if folder.name == "jumping":
                found.wall += timedelta(days=(-1) ** i * 400)
            found.rounds(1)
        shares.append(found.table().shares)
    assert shares[0] == shares[1]


def test_a_loop_that_starts_again_goes_on_from_the_last_table(bench):
    found = bench().start()
    found.demand["a"] = 120.0
    found.rounds(60)
    before = found.table()
    again = bench()
    again.demand["a"] = 120.0
    again.start()
    assert again.table() == before
    assert again.events("started")[-1]["text"] == f"goes on from table {before.version}"
    again.rounds(4)
    assert again.table() == before  # it looks for a while first
    again.rounds(60)
    assert again.table().shares["a"]["a"] == pytest.approx(before.shares["a"]["a"], abs=0.03)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 1}', "\0\1", "null", '{"version": 1, "shares": {"a": {"a": 2}}}']
)
def test_a_table_that_is_corrupted_is_kept_aside_and_all_traffic_starts_at_home(bench, text):
    (bench().folder / "table.json").write_text(text)
    found = bench().start()
    assert (found.folder / "table.json.unusable-1").read_text() == text
    assert found.table().shares["a"] == {"a": 1.0}
    started = found.events("started")[0]
    assert not started["valid"]
    assert "table.json" in started["text"]
    assert "kept as table.json.unusable-1" in started["text"]
    assert "\n" not in started["text"]


def test_a_table_of_other_regions_is_made_to_fit(make_fleet, tmp_path):
    old = Bench(make_fleet(40, 40, 40, 40), tmp_path).start()
    old.demand["a"] = 120.0
    old.rounds(60)
    before = old.table()
    names = {"b": "x"}  # region b is gone, region x is new
    fleet = make_fleet(40, 40, 40, 40)
    content = fleet.model_dump(mode="json", exclude_unset=True)
    content["regions"] = {names.get(name, name): region for name, region in content["regions"].items()}
    content["latency_ms"] = {
        names.get(one, one): {names.get(two, two): ms for two, ms in row.items()}
        for one, row in content["latency_ms"].items()
    }
    new = Bench(type(fleet).model_validate(json.loads(json.dumps(content))), tmp_path).start()
    table = new.table()
    assert table.version == before.version + 1
    row = table.shares["a"]
    assert row["a"] == pytest.approx(before.shares["a"]["a"] + before.shares["a"].get("b", 0.0))
    assert row.get("c") == before.shares["a"].get("c")
    assert table.shares["x"]["x"] == 1.0
    assert "it was made to fit" in new.events("started")[-1]["text"]


def test_freezes_bursts_and_scrape_problems_are_noted_when_they_begin_and_when_they_end(bench):
    stubborn = Stubborn()
    found = bench(stubborn).start()
    found.rounds(20)
    found.problems = (ScrapeProblem(Kind.LATE, "a dispatcher 10.0.0.1:9902", "no answer within 1 s"),)
    found.rounds(3)
    found.problems = ()
    found.demand["b"] = 400.0
    found.rounds(2)
    found.demand["b"] = 40.0
    found.rounds(30)
    known, found.demand = found.demand, {}
    found.rounds(20)
    found.demand = known
    found.rounds(2)
    notable = found.events("metrics", "metrics_well", "burst", "burst_over", "frozen", "thawed")
    assert [event["event"] for event in notable] == [
        "metrics",
        "metrics_well",
        "burst",
        "burst_over",
        "frozen",
        "thawed",
    ]
    assert notable[0]["text"] == "late a dispatcher 10.0.0.1:9902: no answer within 1 s"
    assert notable[2] | {"at": ""} == {
        "at": "",
        "event": "burst",
        "text": "b: demand of 400 rps, where 40 are usual; 20% of its jobs wait",
        "region": "b",
        "delay_share": 0.2,
    }
    raised = {"a": 0.0, "b": 0.2, "c": 0.0}
    assert raised in stubborn.delays
    assert stubborn.delays[-1] == {"a": 0.0, "b": 0.0, "c": 0.0}


def test_a_journal_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path):
    said = []
    journal = Journal(tmp_path / "none" / "decisions.jsonl", lambda: NOW, said.append)
    for _ in range(3):
        journal.note("table", "2: a to b")
    assert len([line for line in said if "cannot be written" in line]) == 1
    assert len(journal.recent) == 3


def test_a_journal_does_not_grow_for_ever(tmp_path):
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(b"x" * (16 * 2**20 + 1))
    journal = Journal(path, lambda: NOW, lambda _: None)
    journal.note("table", "2: a to b")
    assert json.loads(path.read_text())["event"] == "table"
    assert (tmp_path / "decisions.jsonl.1").stat().st_size > 16 * 2**20


def row(region, shares, epoch=1, version=500):
    return Row(region=region, epoch=epoch, version=version, shares=shares)


def test_a_loop_that_starts_is_not_ready_before_it_has_looked_for_long_enough(bench):
    found = bench()
    assert found.loop.snapshot.not_ready == "no round has ended yet"
    found.start()
    found.rounds(3)
    assert found.loop.snapshot.not_ready == "warming up: a, b, c not watched for long enough"
    found.rounds(2)
    assert found.loop.snapshot.not_ready == ""


def test_a_loop_that_starts_with_its_metrics_down_is_not_ready(bench):
    found = bench()
    found.demand = {}
    found.start()
    found.rounds(30)
    assert "regions not heard of" in found.loop.snapshot.not_ready


def test_a_loop_that_has_lost_its_table_goes_on_from_rows_in_use_and_no_share_moves_more_than_a_step(bench):
    found = bench()
    found.demand["a"] = 120.0
    live = {"a": {"a": 0.52, "b": 0.28, "c": 0.2}, "b": {"b": 1.0}}
    found.start()
    for region, shares in live.items():
        found.loop.report(row(region, shares))
    found.loop.report(row("a", {"a": 1.0}, version=498))  # an edge that hears late
    before = live["a"]
    for _ in range(40):
        table = found.rounds(1).table
        after = table.shares["a"]
        assert all(abs(after.get(to, 0.0) - before.get(to, 0.0)) <= 0.2 + 1e-9 for to in "abc")
        assert (table.epoch, table.version) >= (2, 500)  # agents never go back
        before = after
    assert before["a"] < 0.75
    assert found.events("seeded")[0]["regions"] == ["a", "b"]
    assert len(found.events("seeded")) == 1


def test_a_loop_that_has_its_table_ignores_rows_that_are_not_later(bench):
    found = bench().start()
    found.rounds(10)
    found.loop.report(row("a", {"b": 1.0}, version=1))
    found.rounds(1)
    assert found.table().shares["a"] == {"a": 1.0}
    assert found.events("seeded") == []


def test_switches_outlive_the_loop_and_are_in_the_journal(bench):
    found = bench().start()
    found.rounds(10)
    found.loop.switches.drain("b")
    found.loop.switches.freeze()
    found.demand["a"] = 120.0
    assert found.rounds(20).table.version == 1
    assert found.loop.snapshot.not_ready == ""  # it is as the operator wants it
    again = bench()
    assert again.loop.switches.text == "the table is frozen, b is drained"
    again.demand["a"] = 120.0
    again.start()
    again.rounds(10)
    assert again.table().version == 1
    again.loop.switches.resume()
    again.rounds(40)
    assert again.table().shares["a"]["b"] > 0.1
    assert [event["text"] for event in again.events("switched")] == [
        "b is drained by an operator",
        "frozen by an operator: the table stays as it is",
        "resumed by an operator: nothing is frozen or drained",
    ]


def test_switches_that_cannot_be_read_are_named_and_are_none(bench):
    found = bench()
    (found.folder / "switches.json").write_text('{"drained": ["mars"]}')
    again = bench()
    assert again.loop.switches.text == ""
    assert "mars is none of the fleet's regions" in again.events("switches_unusable")[0]["text"]
