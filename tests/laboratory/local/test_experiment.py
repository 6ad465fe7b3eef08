"""The experiment: its table and plot, and one case of it on real Envoys."""

import json

import pytest

from laboratory.arrivals import Outcome
from laboratory.experiment import (
    BURSTS,
    CASES,
    LOADS,
    Cell,
    Effort,
    Measured,
    document,
    fleet_of,
    measure,
    table,
    write,
)
from laboratory.local.client import Summary
from routing.fleet import Fleet

SHORT = Effort(seconds=3.0, warm_s=1.0, bursts=1, fleets=2)


def test_each_case_is_a_fleet_and_they_differ_in_line_and_retries():
    assert all(isinstance(fleet_of(case), Fleet) for case in CASES)
    assert len({(str(case.retry), str(case.queue)) for case in CASES}) == len(CASES)


@pytest.fixture
def measured():
    good = [Outcome("a", 0.0, 0.0, 0.5, 200, "a", 1, gpu="a-1", request_id=str(i)) for i in range(98)]
    summary = Summary.of([*good, *(Outcome("a", 0.0, 0.0, 3.0, 429, attempts=9) for _ in range(2))])
    cells = [Cell(load, None, summary, 1.25) for load in LOADS] + [Cell(None, size, summary, 1.0) for size in BURSTS]
    return [Measured(case, cells) for case in CASES]


def test_results_are_written_as_a_table_a_plot_and_json_that_says_how_to_make_them_again(measured, tmp_path):
    result = document(measured, SHORT, 7, 12.0)
    paths = write(result, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["experiment.json", "experiment.md", "experiment.png"]
    content = json.loads(paths[0].read_text())
    assert content["servers"] == "stand-in"
    assert {"command", "machine", "versions", "seed", "theory"} <= content.keys()
    assert content["cases"][0]["cells"][0]["failed_share"] == 0.02
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    lines = table(content)  # what was read again gives the same table
    assert lines == table(result) == paths[1].read_text().splitlines()
    assert len({line.count("|") for line in lines[2:]}) == 1
    assert lines[4].startswith("| one line a region | 0.50 / 0.50 / 0.50, 2.0 %; ")
    assert lines[-3].startswith("| Envoy in the dispatcher's place")
    assert lines[-1].startswith("| *one line of all 12 GPUs* | 1.00 / ")


@pytest.mark.slow
def test_a_burst_of_twice_the_gpus_waits_and_loses_nothing_with_a_line_and_without():
    line, none = measure(CASES, SHORT, 1)
    assert all(cell.summary.requests > 15 for cell in line.cells[: len(LOADS)])
    at_once = len(LOADS)  # 24 at once on 12 GPUs
    assert line.cells[at_once].summary.failed_share == 0
    assert none.cells[at_once].summary.failed_share == 0
    assert none.cells[at_once].summary.attempts > line.cells[at_once].summary.attempts
