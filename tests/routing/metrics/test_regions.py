import pytest

from routing.metrics.oddities import Kind
from routing.metrics.reading import Silence
from routing.metrics.regions import Regions


def kinds(observation):
    return [one.kind for one in observation.oddities]


def silence(machines, machine, kind=Kind.LATE):
    machines.silent[machine] = Silence(machine, kind, "for a test")


def warm(machines, observe, seconds=2.0, **more):
    observe()
    machines.work(seconds, {"a": 4.0, "b": 1.0}, **more)
    return observe()


def test_a_round_gives_demand_load_capacity_and_where_jobs_went(watch):
    machines, observe = watch(4, 4)
    first = observe()
    assert first.oddities == ()
    assert first.regions["a"].demand_rps is None  # counters tell nothing before the second reading
    assert first.regions["a"].gpus_ready == 4
    machines.work(2.0, {"a": 4.0, "b": 1.0}, load=0.5, retries=0.5)
    seen = observe()
    a = seen.regions["a"]
    assert (a.demand_rps, a.over_s, a.retries_rps) == pytest.approx((4.0, 2.0, 0.5))
    assert a.load == {"gpu": pytest.approx(0.5)}
    assert (a.gpus_ready, a.gpus_missing) == (4, 0)
    # (20 x .5 s for the fleet's prior, which the busy seconds of 10 requests move, and again for the region)
    fleet_s = (20 * 0.5 + 8) / (20 + 10)
    assert a.cost_s == pytest.approx((20 * fleet_s + 4) / (20 + 8))
    assert a.capacity_rps == pytest.approx(4 / a.cost_s)
    assert a.load_per_rps == pytest.approx(a.cost_s / 4)
    assert seen.rps == {"a": {"a": pytest.approx(4.0), "b": 0.0}, "b": {"a": 0.0, "b": pytest.approx(1.0)}}


def test_demand_counts_jobs_that_wait_and_those_that_were_given_up(watch):
    machines, observe = watch(4, 4)
    observe()
    machines.work(2.0, {})
    edge = machines.edges[machines.edge("a")]
    edge["active"] += 6  # a burst, of which nothing is completed yet
    edge["given_up"] += 2
    assert observe().regions["a"].demand_rps == pytest.approx(4.0)
    machines.work(2.0, {})
    edge["active"] -= 6
    edge["completed"] += 6
    assert observe().regions["a"].demand_rps == 0.0


def test_irregular_rounds_give_the_same_rates(watch):
    machines, observe = watch(4, 4)
    observe()
    for seconds in (0.3, 7.0, 2.0, 0.5):
        machines.work(seconds, {"a": 3.0}, load=0.25)
        seen = observe().regions["a"]
        assert seen.demand_rps == pytest.approx(3.0)
        assert seen.load["gpu"] == pytest.approx(0.25)


def test_refused_requests_cost_nothing(watch):
    machines, observe = watch(4, 4)
    before = warm(machines, observe).regions["a"].cost_s
    machines.gpus[machines.gpu("a")]["busy_429"] += 1000
    machines.work(0.1, {"a": 4.0, "b": 1.0})
    assert observe().regions["a"].cost_s == pytest.approx(before, rel=0.01)


def test_a_server_that_nobody_listens_at_is_down_at_once(watch):
    machines, observe = watch(4, 4)
    warm(machines, observe)
    silence(machines, machines.gpu("a"), Kind.REFUSED)
    machines.work(2.0, {"a": 4.0})
    seen = observe()
    assert (seen.regions["a"].gpus_ready, seen.regions["a"].gpus_missing) == (3, 0)
    assert "a-0:3000" not in seen.regions["a"].ready_servers
    assert kinds(seen) == [Kind.REFUSED]


def test_a_silent_server_counts_as_it_was_until_it_is_stale(watch):
    machines, observe = watch(4, 4)
    warm(machines, observe)
    silence(machines, machines.gpu("a"))
    for _ in range(5):
        machines.work(2.0, {"a": 4.0})
        assert observe().regions["a"].gpus_ready == 4
    machines.work(2.0, {"a": 4.0})
    seen = observe().regions["a"]
    assert (seen.gpus_ready, seen.gpus_missing) == (3, 1)
    assert "a-0:3000" in seen.ready_servers  # an ingress that asks it each second knows better
    del machines.silent[machines.gpu("a")]
    assert observe().regions["a"].gpus_ready == 4


def test_a_server_that_loads_or_drains_is_not_ready(watch):
    machines, observe = watch(4, 4)
    machines.gpus[machines.gpu("a")]["ready"] = 0.0
    seen = warm(machines, observe).regions["a"]
    assert (seen.gpus_ready, seen.gpus_missing) == (3, 0)
    assert "a-0:3000" not in seen.ready_servers


def test_half_of_the_pages_missing_leaves_capacity_open_while_the_region_answers(watch):
    machines, observe = watch(4, 4)
    warm(machines, observe)
    for number in (0, 1):
        silence(machines, machines.gpu("a", number))
    for _ in range(6):
        machines.work(2.0, {"a": 4.0, "b": 1.0})
        seen = observe()
    assert seen.regions["a"].capacity_rps is None
    assert seen.regions["a"].gpus_missing == 2
    assert Kind.HALF_MISSING in kinds(seen)
    assert seen.regions["b"].capacity_rps is not None


def test_half_of_the_pages_missing_is_half_of_the_region_down_when_it_answers_nothing(watch):
    machines, observe = watch(4, 4)
    warm(machines, observe)
    for number in range(4):
        silence(machines, machines.gpu("a", number))
    for _ in range(6):
        machines.work(2.0, {"b": 1.0})
        seen = observe()
    assert (seen.regions["a"].capacity_rps, seen.regions["a"].gpus_ready) == (0.0, 0)
    assert Kind.HALF_MISSING in kinds(seen)


def test_an_edge_that_hardly_sends_there_cannot_say_that_a_region_is_down(watch):
    machines, observe = watch(4, 4)
    observe()
    for _ in range(5):
        machines.work(2.0, {"a": 4.0, "b": 1.0})
        machines.edges[machines.edge("b")]["served"]["a"] += 0.02
        observe()
    for machine in (*machines.gpus, machines.edge("a")):
        if machine.region == "a":
            silence(machines, machine)
    for _ in range(10):
        machines.work(2.0, {"b": 1.0})
        seen = observe()
    assert seen.regions["a"].capacity_rps is None
    for _ in range(500):
        machines.work(2.0, {"b": 1.0})
        seen = observe()
    assert seen.regions["a"].capacity_rps == 0.0


def test_without_any_edge_nobody_can_say_whether_a_region_is_down(watch):
    machines, observe = watch(4, 4)
    warm(machines, observe)
    for machine in (*machines.gpus, *machines.edges):
        silence(machines, machine)
    for _ in range(6):
        machines.work(2.0, {})
        seen = observe()
    assert [one.capacity_rps for one in seen.regions.values()] == [None, None]
    assert [one.demand_rps for one in seen.regions.values()] == [None, None]


def test_a_silent_edge_leaves_demand_open_and_what_it_counted_meanwhile_is_not_lost(watch):
    machines, observe = watch(4, 4)
    warm(machines, observe)
    silence(machines, machines.edge("a"))
    machines.work(2.0, {"a": 4.0})
    assert observe().regions["a"].demand_rps is None
    machines.silent.clear()
    machines.work(2.0, {"a": 4.0})
    seen = observe().regions["a"]
    assert (seen.demand_rps, seen.over_s) == pytest.approx((4.0, 4.0))


def test_an_edge_that_is_gone_for_long_has_no_users(watch):
    machines, observe = watch(4, 4)
    warm(machines, observe)
    silence(machines, machines.edge("a"), Kind.REFUSED)
    for _ in range(6):
        machines.work(2.0, {"b": 1.0})
        seen = observe()
        assert seen.regions["a"].demand_rps is None
    machines.work(2.0, {"b": 1.0})
    seen = observe().regions["a"]
    assert (seen.demand_rps, seen.edge_gone) == (0.0, True)
    machines.silent.clear()
    assert not observe().regions["a"].edge_gone


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"load": -1.0}, Kind.NEGATIVE),
        ({"busy": -5.0}, Kind.NEGATIVE),
        ({"busy": float("nan")}, Kind.NOT_A_NUMBER),
        ({"ready": float("inf")}, Kind.NOT_A_NUMBER),
        ({"ready": 7.0}, Kind.ABOVE_LIMIT),
        ({"busy": 1e9}, Kind.ABOVE_LIMIT),
        ({"busy": 0.25}, Kind.COUNTER_RESET),
    ],
)
def test_absurd_values_of_a_server_are_named_and_do_not_count(watch, change, kind):
    machines, observe = watch(4, 4)
    expected = warm(machines, observe).regions["a"]
    machines.work(2.0, {"a": 4.0, "b": 1.0})
    machines.gpus[machines.gpu("a")].update(change)
    seen = observe()
    assert kind in kinds(seen)
    assert all("a gpu a-0:3000" in one.where for one in seen.oddities)
    assert seen.regions["a"].gpus_ready == 4
    assert seen.regions["a"].load["gpu"] == pytest.approx(0.5)
    assert seen.regions["a"].cost_s == pytest.approx(expected.cost_s, rel=0.05)


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
    machines, observe = watch(4, 4)
    warm(machines, observe)
    machines.work(2.0, {"a": 4.0, "b": 1.0})
    before = dict(machines.edges[machines.edge("a")])
    machines.edges[machines.edge("a")].update(change)
    seen = observe()
    assert kind in kinds(seen)
    assert seen.regions["a"].demand_rps is None
    assert seen.regions["b"].demand_rps == pytest.approx(1.0)
    machines.edges[machines.edge("a")].update({key: value for key, value in before.items() if key in change})
    for _ in range(2):
        machines.work(2.0, {"a": 4.0})
        seen = observe()
    assert seen.regions["a"].demand_rps == pytest.approx(4.0)


def test_a_page_that_stands_still_does_not_count(watch):
    machines, observe = watch(4, 4)
    warm(machines, observe)
    frozen = machines.gpus[machines.gpu("a")]
    frozen["load"] = 1.0
    observe()
    for _ in range(7):
        kept = dict(frozen)
        machines.work(2.0, {"a": 4.0, "b": 1.0})
        frozen.update(kept)
        edge = machines.edges[machines.edge("b")]
        edge.update(completed=2.0, uptime=1000.0)
        seen = observe()
    assert kinds(seen).count(Kind.FROZEN) == 2
    assert seen.regions["a"].gpus_ready == 3
    assert seen.regions["b"].demand_rps is None


def test_a_page_without_a_series_is_named(watch):
    machines, observe = watch(1, 1)
    machines.without = {"stillmotion_ready", "envoy_http_downstream_rq_active"}
    seen = observe()
    assert kinds(seen).count(Kind.NO_SERIES) == 4
    assert seen.regions["a"].demand_rps is None
    machines.without = {"stillmotion_busy_seconds_total"}
    warm(machines, observe)
    seen = observe()
    assert kinds(seen).count(Kind.NO_SERIES) == 2
    assert (seen.regions["a"].gpus_ready, seen.regions["a"].load) == (1, {})


def test_no_more_gpus_count_than_the_fleet_has(watch, make_fleet):
    machines, _ = watch(4, 4)
    regions = Regions(make_fleet(3, 4))
    seen = regions.observe(machines.reading(), machines.now)
    assert Kind.TOO_MANY in kinds(seen)
    assert seen.regions["a"].gpus_ready == 3


def test_a_machine_that_a_prometheus_no_longer_shows_is_forgotten_in_time(watch, make_fleet):
    machines, _ = watch(4, 4)
    regions = Regions(make_fleet(4, 4))
    regions.observe(machines.reading(), machines.now)
    gone = machines.edge("a")
    machines.edges[type(gone)("a", "edge", "new:9901")] = machines.edges.pop(gone)
    for _ in range(2):
        machines.work(11.0, {"a": 2.0})
        seen = regions.observe(machines.reading(), machines.now)
    assert seen.regions["a"].demand_rps == pytest.approx(2.0)
    assert kinds(seen) == [Kind.STALE]
    machines.work(400.0, {"a": 2.0})
    assert regions.observe(machines.reading(), machines.now).oddities == ()


def test_several_load_metrics_are_told_apart_and_the_scarcest_sets_the_cost(watch):
    load = {
        "gpu": {"series": "stillmotion_busy_seconds_total"},
        "slots": {"series": "stillmotion_load", "kind": "gauge", "limit": 2, "idle": 0.1},
    }
    machines, observe = watch(4, 4, metrics={"load": load})
    for values in machines.gpus.values():
        values["load"] = 2.0
    seen = warm(machines, observe).regions["a"]
    assert seen.load == {"gpu": pytest.approx(0.5), "slots": pytest.approx(1.0)}
    machines.work(300.0, {"a": 4.0, "b": 1.0})
    assert observe().regions["a"].cost_s == pytest.approx(1.0, rel=0.1)  # 4 full servers, 4 requests per second
