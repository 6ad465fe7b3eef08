"""The experiment: its table and plot, and one case of it on real Envoys."""

import json

import pytest

from routing.fleet import Fleet
from routing.local.client import Outcome, Summary
from routing.local.experiment.cases import BURSTS, CASES, LOADS, Case, fixed_shares, fleet_of
from routing.local.experiment.measure import Cell, Effort, Measured, measure
from routing.local.experiment.results import document, table, write

SHORT = Effort(seconds=3.0, warm_s=0.5, controlled_warm_s=1.0, bursts=1, fleets=2)


def test_the_cases_are_those_that_were_asked_for():
    both = [one.name for one in CASES if one.tiers == 1]
    for name in both:
        assert sum(one.name == name for one in CASES) == 2, name
    assert [name.split(",")[0] for name in both] == [
        "no retry",
        "8 immediate retries",
        "8 retries with backoff",
        "8 retries with backoff",
    ]
    assert LOADS == (0.7, 0.9, 1.1)
    assert all(isinstance(fleet_of(case), Fleet) for case in CASES)
    for row in fixed_shares().values():
        assert sum(row.values()) == pytest.approx(1)


@pytest.fixture
def measured():
    good = [Outcome("a", 0.0, 0.0, 0.5, 200, "a", "a-1", 1, str(i)) for i in range(98)]
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
    assert len({line.count("|") for line in lines}) == 1
    assert "| 2 | no retry | 2.0 % / 1.25 |" in lines[3]
    assert "| 6.3 % | 15.1 % |" in lines[-3]


@pytest.mark.slow
def test_two_tiers_are_measured_beside_one(envoy):  # noqa: ARG001  # without it this is skipped
    cases = tuple(Case(one.name, one.tiers, one.retry) for one in CASES if one.name == "no retry")
    one_tier, two_tiers = measure(cases, SHORT, 1)
    assert [cell.summary.requests > 30 for cell in one_tier.cells[:3]] == [True] * 3
    # 24 at once on 12 GPUs, each tried once.
    assert one_tier.cells[3].summary.failed_share == pytest.approx(0.5, abs=0.05)
    assert two_tiers.cells[3].summary.failed_share == pytest.approx(0.5, abs=0.05)
    assert one_tier.cells[3].gpu_attempts == 1.0
    assert two_tiers.cells[3].gpu_attempts == pytest.approx(0.5, abs=0.05)
