import json
import random
import statistics

import pytest

from laboratory.service_times import parse
from routing.errors import InputError


def drawn(text, count=20_000):
    times, generator = parse(text), random.Random(1)
    return times, [times.draw(generator) for _ in range(count)]


@pytest.mark.parametrize("text", ["0.5", "fixed:0.5"])
def test_a_number_alone_is_a_fixed_time(text):
    times, found = drawn(text, 10)
    assert set(found) == {0.5}
    assert times.mean_s == 0.5


@pytest.mark.parametrize(
    ("text", "mean_s", "deviation_s"), [("exponential:0.5", 0.5, 0.5), ("lognormal:2,0.3", 2.0, 0.6)]
)
def test_mean_and_deviation_are_as_asked_for(text, mean_s, deviation_s):
    times, found = drawn(text)
    assert times.mean_s == mean_s
    assert statistics.fmean(found) == pytest.approx(mean_s, rel=0.03)
    assert statistics.pstdev(found) == pytest.approx(deviation_s, rel=0.05)
    assert min(found) > 0


def test_the_same_seed_gives_the_same_times():
    assert drawn("exponential:1", 100)[1] == drawn("exponential:1", 100)[1]


@pytest.fixture
def bench(tmp_path):
    path = tmp_path / "bench.json"
    rungs = [{"name": "teacher", "median_s": 3.0}, {"name": "8 x 1", "median_s": 0.4, "times_s": [0.3, 0.4, 0.5]}]
    path.write_text(json.dumps({"rungs": rungs}))
    return path


def test_a_benchmark_gives_the_times_of_its_last_rung(bench):
    times, found = drawn(str(bench), 1000)
    assert set(found) == {0.3, 0.4, 0.5}
    assert times.mean_s == pytest.approx(0.4)
    assert drawn(times.text, 1000)[1] == found  # what it says of itself names it again


def test_a_benchmark_gives_the_median_of_a_named_rung_that_has_no_times(bench):
    assert set(drawn(f"{bench}#teacher", 10)[1]) == {3.0}


@pytest.mark.parametrize(
    "text",
    ["", "-1", "nan", "inf", "1e9", "exponential:0", "exponential:", "lognormal:1", "lognormal:1,-1", "gamma:1", "1,2"],
)
def test_what_is_no_distribution_is_an_error_that_names_the_argument(text):
    with pytest.raises(InputError, match="--service-time"):
        parse(text)


@pytest.mark.parametrize("content", ["{}", "[]", "nothing", '{"rungs": [{"name": "a", "median_s": null}]}'])
def test_a_file_without_times_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(InputError, match=r"bench\.json"):
        parse(str(tmp_path / "bench.json"))


def test_a_rung_that_is_not_there_is_an_error_that_names_it(bench):
    with pytest.raises(InputError, match="there is none named student"):
        parse(f"{bench}#student")
