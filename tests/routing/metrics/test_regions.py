import pytest

from routing.metrics.observation import Kind, ScrapeFailure, Target
from routing.metrics.regions import Regions


def kinds(observation):
    return [one.kind for one in observation.problems]


def silence(known, proxy, kind=Kind.LATE):
    known.silent[proxy] = ScrapeFailure(proxy, kind, "for a test")


def warm(known, observe, seconds=2.0, **more):
    observe()
    known.work(seconds, {"a": 4.0, "b": 1.0}, **more)
    return observe()


def test_a_round_gives_demand_load_capacity_and_where_jobs_went(watch):
    known, observe = watch(4, 4)
    first = observe()
    assert first.problems == ()
    assert first.regions["a"].demand_rps is None  # counters tell nothing before the second reading
    assert first.regions["a"].gpus_ready == 4
    known.work(2.0, {"a": 4.0, "b": 1.0}, busy=2.0, retries=0.5)
    known.dispatchers[known.dispatcher("a")]["queue"] = 3.0
    seen = observe()
    a = seen.regions["a"]
    assert (a.demand_rps, a.over_s, a.retries_rps) == pytest.approx((4.0, 2.0, 0.5))
    assert (a.load, a.waiting) == (0.5, 3.0)
    assert (a.gpus_ready, a.gpus_missing) == (4, 0)
    # Busy seconds are the mean of 0 and 2 busy GPUs in each region, times two seconds.
    # Of the jobs that are under way, each counts half.
    fleet_s = (20 * 0.5 + 4) / (20 + 10 + 2)
    assert a.cost_s == pytest.approx((20 * fleet_s + 2) / (20 + 8 + 1))
    assert a.capacity_rps == pytest.approx(4 / a.cost_s)
    assert a.load_per_rps == pytest.approx(a.cost_s / 4)
    assert seen.rps == {"a": {"a": pytest.approx(4.0), "b": 0.0}, "b": {"a": 0.0, "b": pytest.approx(1.0)}}


def test_demand_counts_jobs_that_wait_and_those_that_were_given_up(watch):
    known, observe = watch(4, 4)
    observe()
    known.work(2.0, {})
    edge = known.edges[known.edge("a")]
    edge["active"] += 6  # a burst, of which nothing is completed yet
    edge["given_up"] += 2
    assert observe().regions["a"].demand_rps == pytest.approx(4.0)
    known.work(2.0, {})
    edge["active"] -= 6
    edge["completed"] += 6
    assert observe().regions["a"].demand_rps == 0.0


def test_irregular_rounds_give_the_same_rates_and_the_same_cost(watch):
    known, observe = watch(4, 4, metrics={"cost_memory_s": 1e6})
    observe()
    for seconds in (0.3, 7.0, 2.0, 0.5) * 20:
        known.work(seconds, {"a": 4.0, "b": 4.0}, busy=3.0)
        seen = observe().regions["a"]
        assert seen.demand_rps == pytest.approx(4.0)
    assert seen.cost_s == pytest.approx(0.75, rel=0.05)  # 3 busy GPUs for 4 jobs per second


def test_a_service_that_has_just_begun_to_work_does_not_look_slow(watch):
    known, observe = watch(40, 40)
    observe()
    for _ in range(2):
        known.work(0.25, {}, busy=40.0)  # all servers are busy, and no job is done yet
        seen = observe()
    assert 0.3 < seen.regions["a"].cost_s < 0.75


def test_refusals_cost_nothing(watch):
    known, observe = watch(4, 4)
    before = warm(known, observe).regions["a"].cost_s
    known.dispatchers[known.dispatcher("a")]["refused"] += 1000
    known.work(0.1, {"a": 4.0, "b": 1.0})
    assert observe().regions["a"].cost_s == pytest.approx(before, rel=0.02)


def test_servers_that_a_scaler_sent_away_are_not_missing_and_those_below_the_least_are(watch):
    known, observe = watch(40, 40, regions={"a": {"gpus": 40, "least": 10}, "b": {"gpus": 40}})
    warm(known, observe)
    up = known.dispatchers[known.dispatcher("a")]
    for ready, missing in ((12, 0), (10, 0), (7, 3)):
        up["up"] = ready
        known.work(2.0, {"a": 1.0, "b": 1.0})
        a = observe().regions["a"]
        assert (a.gpus_ready, a.gpus_missing) == (ready, missing)


@pytest.mark.parametrize("lost", [19, 25, 39])
def test_a_region_that_loses_half_of_its_gpus_is_planned_with_what_is_left_at_once_and_for_good(watch, lost):
    known, observe = watch(40, 40)
    warm(known, observe)
    known.dispatchers[known.dispatcher("a")]["up"] -= lost
    for _ in range(300):  # ten minutes
        known.work(2.0, {"a": 40.0, "b": 1.0})
        seen = observe()
        a = seen.regions["a"]
        assert (a.gpus_ready, a.gpus_missing) == (40 - lost, lost)
        assert a.capacity_rps == pytest.approx((40 - lost) / a.cost_s)
    assert seen.problems == ()


def test_a_region_that_is_scaled_down_and_up_again_is_believed_both_times(watch):
    known, observe = watch(40, 40)
    warm(known, observe)
    for up in (4, 31, 40):
        known.dispatchers[known.dispatcher("a")]["up"] = float(up)
        known.work(2.0, {"a": 4.0})
        assert observe().regions["a"].gpus_ready == up


def test_a_silent_dispatcher_counts_as_it_was_and_its_capacity_is_held_while_the_region_answers(watch):
    known, observe = watch(4, 4)
    warm(known, observe)
    silence(known, known.dispatcher("a"))
    for _ in range(5):
        known.work(2.0, {"a": 4.0, "b": 1.0})
        assert observe().regions["a"].gpus_ready == 4
    for _ in range(3):
        known.work(2.0, {"a": 4.0, "b": 1.0})
        seen = observe()
    assert seen.regions["a"].capacity_rps is None
    assert "what was known of its capacity is held" in next(one.text for one in seen.problems if one.kind is Kind.STALE)
    assert seen.regions["b"].capacity_rps is not None
    known.silent.clear()
    known.work(2.0, {"a": 4.0})
    assert observe().regions["a"].gpus_ready == 4


def test_a_silent_dispatcher_whose_region_answers_no_jobs_is_down(watch):
    known, observe = watch(4, 4)
    warm(known, observe)
    silence(known, known.dispatcher("a"))
    for _ in range(6):
        known.work(2.0, {"b": 1.0})
        seen = observe()
    assert (seen.regions["a"].capacity_rps, seen.regions["a"].gpus_ready) == (0.0, 0)


def test_a_dispatcher_where_nobody_listens_is_down_when_it_does_not_come_back_soon(watch):
    known, observe = watch(4, 4, source="pages")
    warm(known, observe)
    silence(known, known.dispatcher("a"), Kind.REFUSED)
    for _ in range(5):  # a restart takes less
        known.work(2.0, {"a": 4.0, "b": 1.0})
        assert observe().regions["a"].gpus_ready == 4
    known.work(2.0, {"a": 4.0, "b": 1.0})
    assert observe().regions["a"].gpus_ready == 0


def test_of_several_dispatchers_those_that_are_heard_count_and_a_silent_one_is_down(watch):
    known, observe = watch(8, 4, source="prometheus")
    first, second = known.dispatcher("a"), Target("a", "dispatcher", "a-second:9902")
    known.dispatchers[second] = dict(known.dispatchers[first], up=3.0)
    known.dispatchers[first]["up"] = 5.0
    assert warm(known, observe).regions["a"].gpus_ready == 8
    silence(known, second)
    for _ in range(6):
        known.work(2.0, {"a": 4.0, "b": 1.0})
        seen = observe()
    assert seen.regions["a"].gpus_ready == 5
    assert any("counts as down" in one.text for one in seen.problems)


def test_a_region_whose_dispatchers_a_prometheus_never_showed_is_not_known(watch):
    known, observe = watch(4, 4, source="prometheus")
    silence(known, known.dispatcher("a"))
    for _ in range(10):
        known.work(2.0, {"a": 4.0, "b": 1.0})
        seen = observe()
    assert seen.regions["a"].gpus_ready is None
    assert ("a dispatcher", "none is heard of, and the fleet has 4 GPUs there") in [
        (one.where, one.text) for one in seen.problems
    ]


def test_an_edge_that_hardly_sends_there_cannot_say_that_a_region_is_down(watch):
    known, observe = watch(4, 4)
    observe()
    for _ in range(5):
        known.work(2.0, {"a": 4.0, "b": 1.0})
        known.edges[known.edge("b")]["served"]["a"] += 0.02
        observe()
    silence(known, known.dispatcher("a"))
    silence(known, known.edge("a"))
    for _ in range(10):
        known.work(2.0, {"b": 1.0})
        seen = observe()
    assert seen.regions["a"].capacity_rps is None


def test_without_any_edge_nobody_can_say_whether_a_region_is_down(watch):
    known, observe = watch(4, 4)
    warm(known, observe)
    for proxy in (*known.dispatchers, *known.edges):
        silence(known, proxy)
    for _ in range(7):
        known.work(2.0, {})
        seen = observe()
    assert [one.capacity_rps for one in seen.regions.values()] == [None, None]
    assert [one.demand_rps for one in seen.regions.values()] == [None, None]


def test_a_silent_edge_leaves_demand_open_and_what_it_counted_meanwhile_is_not_lost(watch):
    known, observe = watch(4, 4)
    warm(known, observe)
    silence(known, known.edge("a"))
    known.work(2.0, {"a": 4.0})
    assert observe().regions["a"].demand_rps is None
    known.silent.clear()
    known.work(2.0, {"a": 4.0})
    seen = observe().regions["a"]
    assert (seen.demand_rps, seen.over_s) == pytest.approx((4.0, 4.0))


def test_an_edge_that_is_gone_for_long_has_no_users(watch):
    known, observe = watch(4, 4, source="pages")
    warm(known, observe)
    silence(known, known.edge("a"), Kind.REFUSED)
    for _ in range(6):
        known.work(2.0, {"b": 1.0})
        seen = observe()
        assert seen.regions["a"].demand_rps is None
    known.work(2.0, {"b": 1.0})
    seen = observe().regions["a"]
    assert (seen.demand_rps, seen.edge_gone) == (0.0, True)
    known.silent.clear()
    assert not observe().regions["a"].edge_gone


@pytest.mark.parametrize(
    ("change", "kind", "ready"),
    [
        ({"busy": -50.0}, Kind.NEGATIVE, 4),
        ({"answers": float("nan")}, Kind.NOT_A_NUMBER, 4),
        ({"up": float("inf")}, Kind.NOT_A_NUMBER, 4),
        ({"up": 1e300}, Kind.TOO_MANY, 4),
        ({"answers": 0.25}, Kind.COUNTER_RESET, 4),
    ],
)
def test_absurd_values_of_a_dispatcher_are_named_and_do_not_count(watch, change, kind, ready):
    known, observe = watch(4, 4)
    warm(known, observe)
    known.work(2.0, {"a": 4.0, "b": 1.0})
    expected = observe().regions["a"]
    known.work(2.0, {"a": 4.0, "b": 1.0})
    known.dispatchers[known.dispatcher("a")].update(change)
    seen = observe()
    assert kind in kinds(seen)
    assert all(one.where.startswith("a dispatcher") for one in seen.problems)
    assert seen.regions["a"].gpus_ready == ready
    assert seen.regions["a"].cost_s == pytest.approx(expected.cost_s, rel=0.2)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"completed": -1.0}, Kind.NEGATIVE),
        ({"active": float("nan")}, Kind.NOT_A_NUMBER),
        ({"completed": 3.0}, Kind.COUNTER_RESET),
        ({"completed": 1e12}, Kind.ABOVE_LIMIT),
    ],
)
def test_absurd_values_of_an_edge_are_named_and_leave_demand_open(watch, change, kind):
    known, observe = watch(4, 4)
    warm(known, observe)
    known.work(2.0, {"a": 4.0, "b": 1.0})
    before = dict(known.edges[known.edge("a")])
    known.edges[known.edge("a")].update(change)
    seen = observe()
    assert kind in kinds(seen)
    assert seen.regions["a"].demand_rps is None
    assert seen.regions["b"].demand_rps == pytest.approx(1.0)
    known.edges[known.edge("a")].update({key: value for key, value in before.items() if key in change})
    for _ in range(2):
        known.work(2.0, {"a": 4.0})
        seen = observe()
    assert seen.regions["a"].demand_rps == pytest.approx(4.0)


def test_a_page_that_stands_still_does_not_count(watch):
    known, observe = watch(4, 4)
    warm(known, observe)
    frozen = (known.dispatchers[known.dispatcher("a")], known.edges[known.edge("b")])
    kept = [dict(one) for one in frozen]
    for _ in range(12):
        known.work(2.0, {"a": 4.0, "b": 1.0})
        for values, before in zip(frozen, kept, strict=True):
            values.update(before)
        seen = observe()
    assert kinds(seen).count(Kind.FROZEN) == 2
    assert seen.regions["b"].demand_rps is None


def test_a_page_without_a_series_is_named(watch):
    known, observe = watch(1, 1)
    known.without = {"haproxy_backend_active_servers", "envoy_http_downstream_rq_active"}
    seen = observe()
    assert kinds(seen).count(Kind.NO_SERIES) == 4
    assert seen.regions["a"].demand_rps is None
    assert seen.regions["a"].gpus_ready is None


def test_no_more_gpus_count_than_the_fleet_has(watch, make_fleet):
    known, _ = watch(4, 4)
    regions = Regions(make_fleet(3, 4))
    seen = regions.observe(known.reading(), known.now)
    assert Kind.TOO_MANY in kinds(seen)
    assert seen.regions["a"].gpus_ready == 3


def test_a_proxy_that_a_prometheus_no_longer_shows_is_forgotten_in_time(watch):
    known, observe = watch(4, 4, source="prometheus")
    observe()
    known.edges[Target("a", "edge", "new:9901")] = known.edges.pop(known.edge("a"))
    for _ in range(2):
        known.work(11.0, {"a": 2.0})
        seen = observe()
    assert seen.regions["a"].demand_rps == pytest.approx(2.0)
    assert kinds(seen) == [Kind.STALE]
    known.work(400.0, {"a": 2.0})
    assert observe().problems == ()
