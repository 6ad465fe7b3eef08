"""Webhooks: tried again, given up, never sent where they must not go."""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.outside import ForbiddenError, Outside
from jobs.webhooks import backoff_s, sign

from .conftest import SECRET, until
from .receiver import Receiver


def test_a_failed_job_is_told_as_well(stand_in, service):
    from starlette.responses import JSONResponse

    server = stand_in()
    server.refuse = JSONResponse({"error": "bad picture", "code": "not_an_image", "field": "image"}, 400)
    with Receiver() as receiver:
        client = service(server.url, private_addresses=True)
        client.submit(webhook_url=receiver.url)
        _, body = until(receiver.first, "it has come")
    assert '"type":"video.failed"' in body
    assert '"param":"input_reference"' in body


def test_a_receiver_that_refuses_is_asked_again_and_given_up_after_the_last_attempt(stand_in, service):
    with Receiver(500) as receiver:
        client = service(stand_in().url, private_addresses=True, webhook_attempts=1)
        client.wait(client.submit(webhook_url=receiver.url))
        until(lambda: client.metric('stillmotion_jobs_webhooks_total{outcome="given_up"}') == 1, "it is given up")
        until(lambda: client.metric("stillmotion_jobs_webhooks_left") == 0, "it is forgotten")
        assert len(receiver.received) == 1


def test_a_receiver_that_hangs_keeps_nothing_else_waiting(stand_in, service):
    with Receiver() as receiver, Receiver() as other:
        hold = asyncio.Event()
        receiver.hang = hold.wait
        client = service(stand_in().url, private_addresses=True)
        client.wait(*(client.submit(webhook_url=receiver.url) for _ in range(10)))
        until(lambda: len(receiver.received) == 8, "it hangs as often as one host may")
        client.submit(webhook_url=other.url)
        until(other.first, "the webhook of another one has come")
        assert client.metric('stillmotion_jobs_webhooks_total{outcome="retried"}') == 0, "the first ones hang still"
        receiver.hang = None


def test_waits_grow_fourfold_to_six_hours():
    rng = random.Random(1)
    waits = [backoff_s(attempts, rng) for attempts in range(1, 11)]
    assert 4 <= waits[0] <= 6
    assert 16 <= waits[1] <= 24
    assert 0.8 * 21600 <= waits[-1] <= 1.2 * 21600


def test_a_signature_is_that_of_the_standard():
    # From the Standard Webhooks specification's own test vector.
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105  # as the specification prints it
    body = '{"test": 2432232314}'
    assert sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )
    assert sign(SECRET, "a", 1, body) != sign(SECRET, "b", 1, body)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "https://127.0.0.1/",
        "https://10.0.0.1/hook",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[2002:7f00:1::]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[::127.0.0.1]/",
        "https://[fec0::1]/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://127。0。0。1/",
        "https://a..b/",
        "https://exa mple.org/",
        "https://xn--/",
        "https://" + "x" * 64 + ".org/",
        "https://example.org:0/",
        "https://169.254.169.254/latest/meta-data",
        "https://0.0.0.0/",
        "https://100.64.0.1/",
        "https://224.0.0.1/",
        "https://user:password@example.org/",
        "https:///hook",
        "https://example.org:99999/",
        "ftp://example.org/",
        "https://" + "x" * 2000,
        "hook",
    ],
)
def test_an_address_that_is_private_or_odd_is_refused_before_anything_is_sent(url):
    async def work():
        outside = Outside(private=False)
        with pytest.raises(ForbiddenError):
            outside.check(url, ())
        await outside.close()

    asyncio.run(work())


def test_a_name_that_stands_for_a_private_address_is_refused_when_it_is_resolved():
    async def work():
        outside = Outside(private=False)
        outside.check("https://localhost/", ())
        with pytest.raises(ForbiddenError, match="localhost is a private"):
            await outside.send("POST", "https://localhost/", (), content=b"", headers={}, most=10)
        with pytest.raises(ForbiddenError, match="not one of the hosts"):
            outside.check("https://example.org/", ("example.com",))
        await outside.close()

    asyncio.run(work())


def test_names_that_take_long_to_resolve_keep_nothing_else_waiting():
    async def work():
        busy, outside = threading.Event(), Outside(private=False)
        pool = ThreadPoolExecutor(1)
        pool.submit(busy.wait)
        asyncio.get_running_loop().set_default_executor(pool)
        # The threads that ask the database are all taken, and a name is resolved all the same: by others.
        with pytest.raises(ForbiddenError, match="localhost is a private"):
            await outside.send("POST", "https://localhost/", (), content=b"", headers={}, most=10)
        busy.set()
        await outside.close()

    asyncio.run(work())


def test_a_private_address_is_refused_when_the_job_is_submitted(stand_in, service):
    client = service(stand_in().url)
    answer = client.create(webhook_url="https://192.168.0.1/hook")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "webhook_url")
