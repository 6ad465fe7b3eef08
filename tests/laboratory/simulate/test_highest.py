"""The highest load at which objectives hold."""

from laboratory.simulate.highest import Goal, highest_load


def test_it_is_where_the_wait_reaches_the_goal_and_more_servers_carry_more_each(make):
    def at(gpus):
        return highest_load(
            make((gpus,), duration_s=2000.0, arrivals={"load": 0.5}, proxies={"queue": 100_000}), Goal()
        )

    few, many = at(2), at(40)
    # M/D/c: two servers wait for half a job's time on average at about 70 %; forty at nearly all.
    assert 1.0 < few["factor"] < 1.8 < many["factor"] < 2.1
    assert few["failure_share"] == many["failure_share"] == 0.0
    assert few["p95_wait_s"] <= 1.0 >= many["p95_wait_s"]
    assert few["utilisation"] < many["utilisation"]


def test_where_no_demand_is_small_enough_there_is_none(make):
    jobs = [{"at_s": 10.0, "region": "a", "jobs": 200}]
    experiment = make((1,), arrivals={"load": 0.1, "bursts": jobs}, retry={"attempts": 1})
    assert highest_load(experiment, Goal()) == {"factor": None, "runs": 7}
