"""Jobs in a database: each test on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from jobs.clock import Clock
from jobs.errors import ApiError, SettingsError, StorageError
from jobs.records import Job, State, new_id
from jobs.settings import EVERYONE, Key
from jobs.store import Store

SHARES = {"large": 3.0, "small": 1.0}
_numbers = itertools.count(1)


def key(name="everyone", **limits):
    return Key(name=name, sha256="1" * 64, **limits)


def job(owner="everyone", **values):
    number = next(_numbers)
    return Job(
        **{
            "id": new_id("video"), "seq": number, "owner": owner, "model": "m", "prompt": "p", "seconds": "2",
            "size": "64x64", "created": float(number), **values,
        }
    )  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.sqlite3"
    return request.getfixturevalue("postgres").database()


@pytest.fixture
def store(url):
    store = Store(url, lambda name: SHARES.get(name, 1.0))
    store.create()
    yield store
    store.close()


def submit(store, *jobs, by=EVERYONE):
    for one in jobs:
        store.submit(one, by, 1000, 1.0)
    return [one.id for one in jobs]


def claims(store, count, worker="w", most_priority=1):
    return [store.claim(worker, 1e9, 30, most_priority) for _ in range(count)]


def test_the_oldest_job_of_the_first_class_is_next(store):
    batch, first, second = job(priority=1), job(), job()
    submit(store, batch, first, second)
    assert [one.id for one in claims(store, 3)] == [first.id, second.id, batch.id]
    assert store.claim("w", 1e9, 30, 1) is None


def test_a_batch_job_is_not_taken_where_only_interactive_ones_may_be(store):
    submit(store, job(priority=1))
    assert store.claim("w", 1e9, 30, 0) is None
    assert store.waiting(1e9) == (1,)


def test_owners_get_room_by_their_shares_however_many_jobs_they_send(store):
    submit(store, *(job("small") for _ in range(20)), *(job("large") for _ in range(20)))
    assert Counter(one.owner for one in claims(store, 8)) == {"large": 6, "small": 2}


def test_a_second_use_of_an_idempotency_key_gives_the_first_job_or_an_error(store):
    first = job(idempotency="k", digest="a")
    submit(store, first)
    assert store.submit(job(idempotency="k", digest="a"), EVERYONE, 10, 1.0) == (first, False)
    with pytest.raises(ApiError, match="Idempotency-Key") as raised:
        store.submit(job(idempotency="k", digest="b"), EVERYONE, 10, 1.0)
    assert raised.value.status == 422
    submit(store, job("small", idempotency="k", digest="b"))  # another owner's keys are others


def test_a_job_that_was_deleted_or_has_expired_counts_against_its_days_quota(store):
    owner = key(per_day=2)
    made = submit(store, job(created=10.0), job(created=20.0), by=owner)
    store.delete(made[0], "everyone")
    store.drop(made)
    with pytest.raises(ApiError, match="limit of 2") as raised:
        store.submit(job(created=30.0), owner, 10, 1.0)
    assert raised.value.retry_after_s == 86_400 - 20
    submit(store, job(created=86_411.0), by=owner)


@pytest.mark.parametrize(
    ("limits", "bound", "code"),
    [({}, 2, "queue_full"), ({"most_unfinished": 2}, 10, "too_many_jobs"), ({"per_day": 2}, 10, "quota_exceeded")],
)
def test_the_queue_and_a_keys_quota_are_bounded(store, limits, bound, code):
    owner = key(**limits)
    submit(store, job(), job(), by=owner)
    with pytest.raises(ApiError, match="limit of 2") as raised:
        store.submit(job(), owner, bound, 7.0)
    assert (raised.value.status, raised.value.code) == (429, code)
    assert raised.value.retry_after_s >= 1


def test_only_who_holds_a_job_can_end_it_and_only_once(store):
    submit(store, job(webhook="https://example.org/"))
    (mine,) = claims(store, 1)
    assert store.finish(replace(mine, worker="other"), 5.0, 50.0, result={}) is None
    assert store.finish(replace(mine, attempts=2), 5.0, 50.0, result={}) is None
    done = store.finish(mine, 5.0, 50.0, result={"seed": "1"})
    assert (done.state, done.progress) == (State.COMPLETED, 100)
    assert store.finish(mine, 6.0, 60.0, error={"code": "c"}) is None
    assert [one.kind for one in store.due(1e9, 2e9, 20)] == ["video.completed"]
    assert store.get(mine.id, "everyone").result == {"seed": "1"}


def test_a_job_keeps_its_place_when_it_comes_back_and_counts_computations_alone(store):
    submit(store, job(), job())
    (first,) = claims(store, 1)
    store.release(first, 0.0, counts=False)
    (again,) = claims(store, 1)
    assert (again.id, again.attempts) == (first.id, 1)
    store.release(again, 0.0, counts=True)
    (third,) = claims(store, 1)
    assert (third.id, third.attempts) == (first.id, 2)


def test_jobs_of_a_worker_that_is_heard_of_no_more_are_taken_over_once(store):
    submit(store, job(), job())
    held = [store.claim("dead", 100.0, 30, 1), store.claim("alive", 100.0, 30, 1)]
    assert store.renew("alive", 200.0, {held[1].id: 40}) == ({held[1].id}, set())
    assert store.lapsed(129.0, "me", 300.0) == []
    assert [one.id for one in store.lapsed(131.0, "me", 300.0)] == [held[0].id]
    assert store.lapsed(131.0, "other", 300.0) == []
    assert store.get(held[1].id, "everyone").progress == 40


def test_a_job_whose_worker_never_heard_that_it_got_it_is_taken_over(store):
    submit(store, job(), job())
    known, unheard = store.claim("w", 100.0, 30, 1), store.claim("w", 100.0, 30, 1)
    assert store.renew("w", 200.0, {known.id: None}) == ({known.id}, set())
    assert [one.id for one in store.lapsed(131.0, "other", 300.0)] == [unheard.id]


def test_a_job_that_was_sent_and_has_not_begun_is_shown_as_queued(store):
    submit(store, job(), job())
    first, second = claims(store, 2)
    assert store.get(first.id, "everyone").to_api()["status"] == "queued"
    assert store.place(second) == 1
    store.start(first)
    store.renew("w", 1e9, {first.id: 5, second.id: None})
    assert [store.get(one.id, "everyone").status for one in (first, second)] == ["in_progress", "queued"]
    assert store.totals() == {("queued", 0): 1, ("in_progress", 0): 1}
    store.release(first, 0.0, counts=True)
    (again,) = claims(store, 1)
    assert (again.id, again.status) == (first.id, "queued")


def test_replicas_go_by_the_databases_clock(store):
    ahead, behind = (Clock(store.now, wall=lambda off=off: time.time() + off) for off in (3600, -3600))
    assert ahead() - behind() > 7000
    ahead.look()
    behind.look()
    assert abs(ahead() - behind()) < 100
    submit(store, job())
    store.claim("behind", behind(), 200, 1)
    assert store.lapsed(ahead(), "ahead", ahead() + 200) == []


def test_a_deleted_job_is_gone_for_its_owner_and_told_to_its_worker(store):
    first, second = job(), job()
    submit(store, first, second)
    claims(store, 1, "w")
    assert store.delete(first.id, "someone else") is None
    assert store.delete(first.id, "everyone").state == State.IN_PROGRESS
    assert store.delete(first.id, "everyone") is None
    assert store.get(first.id, "everyone") is None
    assert store.renew("w", 1e9, {first.id: None}) == ({first.id}, {first.id})
    store.delete(second.id, "everyone")
    assert store.claim("w", 1e9, 30, 1) is None
    assert [one.id for one in store.expired(1.0)] == [second.id]
    store.drop([first.id, second.id])
    assert store.unknown([first.id, second.id]) == {first.id, second.id}


def test_a_webhook_comes_up_again_until_it_is_sent(store):
    submit(store, job(webhook="https://example.org/"))
    (mine,) = claims(store, 1)
    store.finish(mine, 5.0, 50.0, error={"code": "lost", "message": "m"})
    (one,) = store.due(10.0, 70.0, 20)
    assert store.due(60.0, 70.0, 20) == []
    (again,) = store.due(70.0, 130.0, 20)
    assert (again.id, again.attempts) == (one.id, 1)
    store.postpone(one.id, 500.0, 1)
    assert store.due(400.0, 600.0, 20) == []
    store.sent(one.id)
    assert store.due(1e9, 2e9, 20) == []


def test_workers_that_ask_at_the_same_time_never_get_the_same_job(url, store):
    made = submit(store, *(job() for _ in range(60)))
    others, found = [Store(url) for _ in range(4)], []

    def work(store, worker):
        while (one := store.claim(worker, 1e9, 30, 1)) is not None:
            found.append(one.id)

    threads = [threading.Thread(target=work, args=(other, f"w{n}")) for n, other in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for other in others:
        other.close()
    assert sorted(found) == sorted(made)


def test_the_bound_holds_where_many_submit_at_the_same_time(url, store):
    assert store.waiting(1e9) == ()
    others, taken = [Store(url) for _ in range(4)], []

    def work(store):
        for _ in range(10):
            with contextlib.suppress(ApiError):
                taken.append(store.submit(job(), EVERYONE, 15, 1.0))

    threads = [threading.Thread(target=work, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for other in others:
        other.close()
    assert len(taken) == 15


def test_a_database_that_is_gone_is_an_error_and_comes_back_by_itself(postgres):
    store = Store(postgres.database())
    store.create()
    submit(store, job())
    postgres.stop()
    try:
        with pytest.raises(StorageError, match="the database does not answer"):
            store.claim("w", 1e9, 30, 1)
    finally:
        postgres.start()
    assert store.claim("w", 1e9, 30, 1) is not None
    store.close()


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/name", "postgresql://user@host:port/name"])
def test_an_address_that_is_no_database_is_named(url):
    with pytest.raises(SettingsError, match="database: "):
        Store(url)
