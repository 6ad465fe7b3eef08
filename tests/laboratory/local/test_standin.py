"""Stand-ins: what traffic sees of them is what it sees of a GPU server."""

import asyncio
import contextlib
import io
import random
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from laboratory.local.gpu import GIF, Ledger, StandIn, computations, read
from laboratory.local.standin import Listener
from laboratory.service_times import parse

from ...ports import free_port

ROOT = Path(__file__).resolve().parents[3]
FORM = {"files": {"image": ("a.gif", GIF)}, "data": {"prompt": "a red circle"}}


async def until(condition):
    """Wait for what has to come."""
    end = time.monotonic() + 60
    while True:
        if condition():
            return
        assert time.monotonic() < end, "it did not become true"
        await asyncio.sleep(0.01)


async def ended_by_us(job):
    """Give a job up, and see it end."""
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)


@pytest.fixture
def running(tmp_path):
    """`async with running(seconds) as (standin, client)`."""

    @contextlib.asynccontextmanager
    async def run(service_time="0.2"):
        standin = StandIn("a-1", "a", parse(service_time), random.Random(0), Ledger(tmp_path / "a-1.ledger"))
        address = f"127.0.0.1:{free_port()}"
        listener = Listener(standin.answer, address)
        await listener.open()
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60, trust_env=False) as client:
            try:
                yield standin, client
            finally:
                listener.cut()

    return run


def test_a_job_takes_its_time_and_says_who_did_it(running):
    async def scenario():
        async with running("0.2") as (_, client):
            began = time.monotonic()
            response = await client.post("/animate", **FORM, headers={"x-request-id": "one"})
            assert time.monotonic() - began >= 0.2
            assert response.status_code == 200
            headers = response.headers
            assert headers["x-stillmotion-model"] == "stand-in"
            assert headers["server"] == "stillmotion-stand-in"
            assert headers["x-stillmotion-region"] == "a"
            assert headers["x-stillmotion-gpu"] == "a-1"
            assert headers["x-stillmotion-compute-seconds"] == "0.200"
            with Image.open(io.BytesIO(response.content)) as picture:
                assert (picture.format, picture.size, picture.n_frames) == ("GIF", (16, 16), 3)

    asyncio.run(scenario())


def test_of_many_jobs_at_once_one_is_computed_and_the_rest_are_refused_at_once_without_a_body(running, tmp_path):
    async def scenario():
        async with running("600") as (_, client):

            async def post(i):
                return await client.post("/animate", **FORM, headers={"x-request-id": str(i)})

            jobs = {asyncio.create_task(post(i)) for i in range(20)}
            while len(jobs) > 1:  # the one that is computed takes ten minutes
                ended, jobs = await asyncio.wait(jobs, timeout=60, return_when=asyncio.FIRST_COMPLETED)
                assert ended
                for response in (one.result() for one in ended):
                    assert response.status_code == 429
                    assert response.content == b""
                    assert 0 < int(response.headers["retry-after"]) <= 601
            assert sum(computations(tmp_path).values()) == 1
            # The connections of refused jobs are good for the next one.
            assert (await client.post("/animate", **FORM)).status_code == 429
            await ended_by_us(jobs.pop())

    asyncio.run(scenario())


def test_a_job_whose_client_goes_away_is_stopped_at_its_next_step(running, tmp_path):
    async def scenario():
        async with running("4") as (standin, client):
            job = asyncio.create_task(client.post("/animate", **FORM, headers={"x-request-id": "gone"}))
            await until(lambda: computations(tmp_path))
            job.cancel()
            await until(lambda: standin.requests["disconnected"])
            assert not standin.busy
            assert [(event, name) for event, name, _ in read(tmp_path)] == [("began", "gone"), ("cancelled", "gone")]
            assert standin.requests["disconnected"] == 1

    asyncio.run(scenario())


def test_events_of_a_stream_end_with_the_result_and_free_the_slot(running):
    async def scenario():
        async with running("0.1") as (standin, client):
            response = await client.post("/animate/stream", **FORM)
            kinds = re.findall(r"^event: (\w+)$", response.text, flags=re.MULTILINE)
            assert kinds == ["start", *["step"] * 8, "result"]
            assert not standin.busy
            assert standin.requests["ok"] == 1

    asyncio.run(scenario())


def test_a_stream_whose_client_goes_away_frees_the_slot(running):
    async def scenario():
        async with running("2") as (standin, client):
            async with client.stream("POST", "/animate/stream", **FORM) as response:
                async for line in response.aiter_lines():
                    if line.startswith("event: step"):
                        break
            await until(lambda: not standin.busy)

    asyncio.run(scenario())


@pytest.mark.parametrize("chunked", [False, True])
def test_uploads_are_read_up_to_the_limit(running, chunked):
    async def upload(size):
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        yield head
        for _ in range(size // 2**20):
            yield bytes(2**20)
        yield b"\r\n--x--\r\n"

    async def scenario():
        async with running("0") as (_, client):
            for size, status in ((2**21, 200), (17 * 2**20, 413)):
                parts = [part async for part in upload(size)]
                content = upload(size) if chunked else b"".join(parts)
                headers = {"content-type": "multipart/form-data; boundary=x"}
                with contextlib.suppress(httpx.WriteError):  # the server may answer and close before it has all
                    assert (await client.post("/animate", content=content, headers=headers)).status_code == status
            assert (await client.post("/animate", json={})).status_code == 415

    asyncio.run(scenario())


def test_pages_answer_while_it_is_busy(running):
    async def scenario():
        async with running("600") as (standin, client):
            job = asyncio.create_task(client.post("/animate", **FORM))
            await until(lambda: standin.busy)
            for path in ("/livez", "/readyz", "/healthz", "/docs.json", "/"):
                assert (await client.get(path)).status_code == 200, path
            assert (await client.get("/standin")).json()["busy"]
            assert not job.done()
            await ended_by_us(job)
            assert (await client.head("/docs.json")).content == b""
            assert (await client.get("/nothing")).status_code == 404

    asyncio.run(scenario())


def test_busy_seconds_grow_while_it_computes(running):
    async def scenario():
        async with running("600") as (standin, client):
            job = asyncio.create_task(client.post("/animate", **FORM))
            await until(lambda: standin.busy)
            found = []
            for _ in range(3):
                found.append((await client.get("/standin")).json()["busy_s"])
                await asyncio.sleep(0.05)
            assert found[0] < found[1] < found[2]
            await ended_by_us(job)

    asyncio.run(scenario())


def test_faults_are_set_and_taken_back(running):
    async def scenario():
        async with running("0") as (_, client):

            async def order(**what):
                assert (await client.post("/standin/faults", json=what)).status_code == 200

            await order(ready=False)
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.post("/animate", **FORM)).status_code == 503
            await order(ready=True)
            assert (await client.post("/animate", **FORM)).status_code == 200
            assert (await client.get("/standin")).json()["kind"] == "stand-in"
            wrong_values = (b'{"slowness": 0}', b'{"slowness": true}', b'{"admission": 0}', b'{"admission": 1.5}')
            wrong_keys = (b"", b"[]", b'{"ready": 1}', b'{"down_s": -1}', b'{"more": 1}')
            for wrong in (*wrong_keys, *wrong_values):
                assert (await client.post("/standin/faults", content=wrong)).status_code == 400

    asyncio.run(scenario())


def test_a_slow_stand_in_takes_its_time_and_says_so(running):
    async def scenario():
        async with running("0.1") as (_, client):
            await client.post("/standin/faults", json={"slowness": 3})
            began = time.monotonic()
            answer = await client.post("/animate", **FORM)
            assert time.monotonic() - began > 0.29
            assert float(answer.headers["x-stillmotion-compute-seconds"]) == pytest.approx(0.3)

    asyncio.run(scenario())


def test_an_admission_of_two_lets_one_job_wait_and_refuses_the_third(running):
    async def scenario():
        async with running("0.3") as (standin, client):

            async def crowd(admission, count):
                assert (await client.post("/standin/faults", json={"admission": admission})).status_code == 200
                answers = await asyncio.gather(*(client.post("/animate", **FORM) for _ in range(count)))
                assert not standin.busy
                return sorted(one.status_code for one in answers)

            async def crowded(admission, count, wanted):
                for _ in range(5):  # a machine that stands still may let them come one after the other
                    began = time.monotonic()
                    if await crowd(admission, count) == wanted:
                        return time.monotonic() - began
                pytest.fail(f"never {wanted}")

            assert await crowded(2, 3, [200, 200, 429]) > 0.59  # one after the other
            await crowded(1, 2, [200, 429])

    asyncio.run(scenario())


def test_faults_cannot_be_set_through_a_proxy(running):
    async def scenario():
        async with running("0") as (_, client):
            headers = {"x-forwarded-for": "127.0.0.1"}
            assert (await client.post("/standin/faults", json={"ready": False}, headers=headers)).status_code == 404
            assert (await client.get("/standin", headers=headers)).status_code == 404

    asyncio.run(scenario())


def start(*arguments):
    command = [sys.executable, "-m", "laboratory.local.standin", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def program():
    """Starts stand-ins as a program, and gives a client of each."""
    started = []

    def run(count, *more):
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(count)]
        named = [part for i, address in enumerate(addresses, 1) for part in ("--serve", f"a-{i}={address}")]
        process = start("--region", "a", *named, *more)
        started.append(process)
        for _ in addresses:
            assert process.stderr.readline().startswith("stand-in a-")
        return process, [httpx.Client(base_url=f"http://{one}", timeout=60, trust_env=False) for one in addresses]

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_process_holds_several_of_which_one_can_go_down_for_a_while(program, eventually):
    _, (one, other) = program(2, "--service-time", "0")
    assert one.post("/standin/faults", json={"down_s": 2}).status_code == 200

    def ready(client):
        with contextlib.suppress(httpx.TransportError):
            return client.get("/readyz").status_code == 200
        return False

    eventually(lambda: not ready(one))
    assert ready(other)
    eventually(lambda: ready(one))


def test_on_sigterm_it_refuses_ends_its_job_and_ends(program, eventually):
    process, (client,) = program(1, "--service-time", "2")
    waiting = httpx.Client(base_url=client.base_url, timeout=60, trust_env=False)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(waiting.post, "/animate", **FORM)
        eventually(lambda: client.get("/standin").json()["busy"])
        process.terminate()
        eventually(lambda: client.get("/readyz").status_code == 503)
        refused = client.post("/animate", **FORM)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert refused.json()["code"] == "draining"
        assert job.result().status_code == 200
    assert process.wait(60) == 0


def test_a_wrong_argument_is_an_error_of_one_line():
    for arguments, text in (
        (("--region", "a", "--serve", "a-1=10.0.0.1:80"), "GPU=ADDRESS"),
        (("--region", "a", "--serve", "a-1=127.0.0.1:1", "--service-time", "soon"), "--service-time"),
    ):
        process = start(*arguments)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2
        assert text in error.splitlines()[-1]
