"""The judge: how often it is wrong, however often it looks, and what it says of counters."""

import json
import random
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.errors import RoutingError
from routing.rollout.confidence import interval, log_martingale
from routing.rollout.counters import Growth, Pages, Prometheus, Tally
from routing.rollout.judge import Clips, judge
from routing.rollout.settings import Limits

ERROR = 0.05
LIMITS = Limits(failures=0.01)
LOOKS = range(25, 3001, 25)


def tally(jobs, failed=0, slow=0, refused=0, rejected=0):
    return Tally({200: jobs - failed - rejected, 500: failed, 422: rejected}, refused, {0.5: jobs - slow}, jobs)


def run_of(generator, share):
    """Failures after each job."""
    total, found = 0, [0]
    for _ in range(LOOKS[-1]):
        total += generator.random() < share
        found.append(total)
    return found


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.01, 0.1]))
def test_an_interval_holds_what_was_seen_and_its_ends_are_where_the_martingale_reaches_the_error(seen, error):
    events, trials = seen
    low, high = interval(events, trials, error)
    assert 0 <= low <= events / trials <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        assert log_martingale(events, trials, end) == pytest.approx(log(1 / error), rel=1e-3)


@pytest.mark.parametrize("share", [0.003, 0.05, 0.4])
def test_an_interval_misses_the_share_in_no_more_runs_than_its_error_though_one_looks_all_the_time(share):
    generator, runs, missed = random.Random(7), 300, 0
    for _ in range(runs):
        seen = run_of(generator, share)
        # Whether the share is inside, without the search for the ends: the martingale is below 1 / error.
        missed += any(log_martingale(seen[n], n, share) >= log(1 / ERROR) for n in LOOKS)
    assert missed <= ERROR * runs


@pytest.mark.parametrize(
    ("stable", "candidate", "wrong"),
    [(0.002, 0.012, "pass"), (0.002, 0.012, "fail"), (0.0, 0.01, "pass"), (0.05, 0.05, "fail")],
)
def test_a_candidate_at_the_margin_or_as_good_is_misjudged_in_no_more_runs_than_the_error(stable, candidate, wrong):
    generator, runs, mistaken = random.Random(11), 40, 0
    for _ in range(runs):
        ours, theirs = run_of(generator, stable), run_of(generator, candidate)
        for n in LOOKS[7::8]:
            found = judge(tally(n, ours[n]), tally(n, theirs[n]), LIMITS, 0.5)
            if next(one.verdict for one in found.findings if one.name == "failures") == wrong:
                mistaken += 1
                break
    assert mistaken <= ERROR * runs


def test_what_is_clearly_better_or_worse_is_known_soon():
    assert judge(tally(9000), tally(4000), Limits(), 0.5).verdict == "pass"
    worse = {"failures": {"failed": 40}, "slow": {"slow": 400}, "refusals": {"refused": 300}}
    for name, what in (worse | {"rejections": {"rejected": 200}}).items():
        found = judge(tally(9000, 2), tally(2000, **what), Limits(), 0.5)
        assert found.verdict == "fail"
        assert found.why.startswith(f"{name}: candidate {next(iter(what.values()))} of ")
    # A candidate that is twice as slow, after a dozen jobs.
    assert judge(tally(100), tally(12, slow=12), Limits(), 0.5).verdict == "fail"


def test_without_traffic_it_cannot_tell():
    found = judge(tally(100_000), Tally(), Limits(), 0.5)
    assert (found.verdict, found.why) == ("cannot tell", "the candidate has had no job")
    assert judge(Tally(), Tally(), Limits(), 0.5).verdict == "cannot tell"
    assert judge(Tally(), tally(20), Limits(), 0.5).verdict == "cannot tell"


PAGE = """# TYPE stillmotion_dispatcher_jobs_total counter
stillmotion_dispatcher_jobs_total{{version="candidate",model="b",code="200",by="server"}} {ok}
stillmotion_dispatcher_jobs_total{{version="candidate",model="b",code="500",by="server"}} {failed}
stillmotion_dispatcher_jobs_total{{version="candidate",model="",code="502",by="dispatcher"}} {lost}
stillmotion_dispatcher_jobs_total{{version="candidate",model="",code="429",by="dispatcher"}} 99
stillmotion_dispatcher_jobs_total{{version="candidate",model="b",code="429",by="server"}} {refused}
stillmotion_dispatcher_job_seconds_bucket{{version="candidate",model="b",le="0.5"}} {ok}
stillmotion_dispatcher_job_seconds_bucket{{version="candidate",model="b",le="+Inf"}} {ok}
"""


def test_counters_grow_from_the_first_reading_on_and_through_restarts(fake_server):
    def page(**values):
        return 200, PAGE.format(**({"ok": 0, "failed": 0, "lost": 0, "refused": 0} | values))

    first, second = fake_server(page(ok=100, failed=50)), fake_server(page())
    growth, source = Growth(), Pages([first.url, second.url])
    for answer in (page(ok=110, failed=51, lost=1), page(ok=5, refused=2), page(ok=5, refused=2)):
        growth.take(source.read())
        first.answer = answer
    growth.take(source.read())
    found = growth.tally("candidate")
    assert found.answers == {200: 15, 500: 1, 502: 1}
    assert (found.failed, found.refused, found.timed, found.slower(0.4)) == (2, 2, 15, 0)
    assert found.models == {"b"}
    assert growth.tally("stable").jobs == 0


def test_a_prometheus_has_the_counters_of_each_dispatcher(fake_server):
    def answer(*values):
        own = {"__name__": "stillmotion_dispatcher_jobs_total", "version": "candidate", "code": "200", "by": "server"}
        series = [
            {"metric": {**own, "instance": f"d{i}", "region": "a", "job": "x"}, "value": [1.0, value]}
            for i, value in enumerate(values)
        ]
        return 200, json.dumps({"status": "success", "data": {"result": series}})

    server, growth = fake_server(answer("5", "100")), Growth()
    source = Prometheus(server.url, 'region="a"')
    growth.take(source.read())
    server.answer = answer("8", "110")
    growth.take(source.read())
    assert growth.tally("candidate").jobs == 13
    assert "region%3D%22a%22" in server.asked[0]
    server.answer = 200, '{"status": "error", "error": "parse error"}'
    with pytest.raises(RoutingError, match="refuses the question: parse error"):
        source.read()


def test_where_nothing_can_be_read_it_says_where(fake_server):
    with pytest.raises(RoutingError, match=r"no dispatcher's counters can be read; http://127\.0\.0\.1:1/jobs"):
        Pages(["http://127.0.0.1:1"]).read()
    with pytest.raises(RoutingError, match="no answer of a Prometheus"):
        Prometheus(fake_server((200, "not JSON")).url).read()


def test_clips_that_are_wrong_fail_a_candidate_or_hold_it_up_and_too_few_to_tell_do_not():
    good = tally(9000), tally(9000)
    assert judge(*good, LIMITS, 1.0, Clips(3, 0)).verdict == "pass"  # idle GPUs may be rare
    found = judge(*good, LIMITS, 1.0, Clips(8, 8, "the last: it is blank"))
    assert found.verdict == "fail"
    assert found.why.startswith("clips: candidate 8 of 8 (")
    assert found.why.endswith("margin 5.00%: fail (the last: it is blank)")
    assert judge(*good, LIMITS, 1.0, Clips(400, 4)).verdict == "pass"  # one in a hundred is within the margin
    held_up = judge(*good, LIMITS, 1.0, Clips(62, 5))  # one in eight, which chance may still have made of one in twenty
    assert held_up.verdict == "cannot tell"
    assert held_up.why.startswith("clips: candidate 5 of 62 (")
    assert judge(*good, LIMITS, 1.0, Clips(62, 3)).verdict == "pass"  # cannot be told, and is within the margin
    assert judge(*good, LIMITS, 1.0).findings == judge(*good, LIMITS, 1.0, None).findings
    assert Clips(9, 3, "x").since(Clips(5, 1)) == Clips(4, 2, "x")
