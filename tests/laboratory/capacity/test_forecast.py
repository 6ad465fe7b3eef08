"""Demand of later weeks: a trend that was there is found, a campaign is not expected again, and errors are told."""

import json

import pytest

from routing.cli import main


@pytest.fixture
def forecast(history, bench, fleet, tmp_path, capsys):
    """`forecast(rows, **planning)`: what `capacity --json` says of later weeks."""

    def run(content, *more, **planning):
        (tmp_path / "fleet.yaml").write_text(fleet.model_dump_json(exclude_unset=True))
        (tmp_path / "capacity.yaml").write_text(json.dumps({"forecast_weeks": 2, **planning}))
        files = ["--traffic", str(history(content)), "--fleet", str(tmp_path / "fleet.yaml")]
        files += ["--service-time", str(bench), "--scenario", str(tmp_path / "capacity.yaml"), "--no-sensitivity"]
        assert main(["capacity", *more, *files]) == 0
        text = capsys.readouterr().out
        return json.loads(text)["forecast"] if "--json" in more else text

    return run


def grown(rows, factor, campaign=1.0):
    """Each week is `factor` times the one before; one evening of the third has more."""
    found = []
    for i, (time, region, requests) in enumerate(rows):
        week, hour = divmod(i // 3, 168)
        extra = campaign if week == 2 and region == "a" and 66 <= hour < 69 else 1.0
        found.append((time, region, round(requests * factor**week * extra)))
    return found


def test_a_trend_is_found_and_tried_on_the_last_weeks(forecast, rows):
    found = forecast(grown(rows(days=42), 1.03), "--json")
    assert found["growth_per_week"] == pytest.approx({"a": 1.03, "b": 1.03, "c": 1.03}, abs=2e-3)
    assert found["backtest"]["weeks"] == 4
    assert found["backtest"]["error"] < 0.002
    flat = forecast(rows(days=42), "--json")
    assert found["gpus"]["p50"]["total"] == pytest.approx(flat["gpus"]["p50"]["total"] * 1.03**7, rel=0.06)


def test_a_campaign_of_the_past_is_an_error_and_not_expected_again(forecast, rows):
    quiet, loud = (forecast(grown(rows(days=35), 1.0, campaign), "--json") for campaign in (1.0, 2.0))
    assert loud["gpus"]["p50"] == quiet["gpus"]["p50"]
    assert quiet["backtest"]["error_in_busy_hours"] < 0.001 < loud["backtest"]["error_in_busy_hours"]
    total = [loud["gpus"][name]["total"] for name in ("p50", "p90", "p99")]
    assert total == sorted(set(total))
    assert quiet["gpus"]["p99"] == quiet["gpus"]["p50"]


def test_launches_come_on_top_and_growth_does_not(forecast, rows):
    plain = forecast(rows(days=28), "--json")["gpus"]["p50"]["total"]
    launch = {"name": "night", "factor": 2.0, "day": "friday", "from_hour": 0, "hours": 24}
    assert forecast(rows(days=28), "--json", launches=[launch])["gpus"]["p50"]["total"] > 1.8 * plain
    assert forecast(rows(days=28), "--json", growth=1.5)["gpus"]["p50"]["total"] == plain


def test_people_are_told_and_a_short_history_says_so(forecast, rows):
    text = forecast(rows(days=28))
    assert "Forecast, 2 weeks after the history; growth a week: a +0.0 %, b +0.0 %, c +0.0 %" in text
    assert "each of the last 2 weeks, forecast from those before it, was off by 0.0 % in an hour" in text
    short = "No forecast: the whole weeks of the history are 1, and a forecast takes 4; its peak counts."
    assert short in forecast(rows(days=13))
    assert forecast(rows(days=28), "--json", forecast_weeks=0) == {}
    assert "No forecast: the whole weeks of the history are 0" in forecast(rows(days=3))
    nobody_before = [(time, region, n if i >= 3 * 24 * 27 else 0) for i, (time, region, n) in enumerate(rows(days=28))]
    assert "No forecast: the last weeks of the history have no demand" in forecast(nobody_before)
