"""What a proxy puts up with: sizes, times, connections, memory."""

import asyncio
import contextlib
import time

import httpx
import pytest
import yaml

from routing.envoy.files import BOOTSTRAP

MIB = 2**20


async def raw(address: str, *parts: bytes, pause_s: float = 0.0, limit_s: float = 60.0) -> bytes:
    """What comes back on a connection that sends these parts."""
    reader, writer = await asyncio.open_connection(*address.split(":"))
    try:
        for part in parts:
            with contextlib.suppress(ConnectionError):
                writer.write(part)
                await writer.drain()
            await asyncio.sleep(pause_s)
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(reader.read(4096), limit_s)
        return b""
    finally:
        writer.close()


def test_what_is_too_large_is_refused_as_the_service_would(running):
    async def scenario():
        jobs, limits = {"body_limit": "2MiB"}, {"headers_kb": 8}
        async with running({"a": 1}, service_s=0.01, jobs=jobs, limits=limits) as fleet:
            fits = await fleet.client.post(fleet.url("a"), content=b"x" * (2 * MIB))
            assert fits.status_code == 200

            response = await fleet.client.post(fleet.url("a"), content=b"x" * (2 * MIB + 1))
            assert (response.status_code, response.json()["code"]) == (413, "too_large")

            response = await fleet.client.post(fleet.url("a"), headers={"x-long": "x" * 9000})
            assert (response.status_code, response.json()["code"]) == (431, "too_large")
            response = await fleet.client.post(fleet.url("a"), headers={f"x-{i}": "x" for i in range(120)})
            assert response.status_code == 431
            assert fleet.servers["a"][0].started == 1

    asyncio.run(scenario())


def test_a_request_that_could_be_read_in_two_ways_is_refused(running):
    async def scenario():
        async with running({"a": 1}, service_s=0.01) as fleet:
            edge = fleet.places["a"].edge
            both = (
                b"POST /animate HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
            )
            underscore = b"POST /animate HTTP/1.1\r\nhost: a\r\nx_request: a\r\ncontent-length: 0\r\n\r\n"
            no_host = b"POST /animate HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
            for request in (both, underscore, no_host, b"no http\r\n\r\n"):
                assert (await raw(edge, request)).startswith(b"HTTP/1.1 400"), request
            assert fleet.servers["a"][0].started == 0

    asyncio.run(scenario())


def test_a_slow_upload_keeps_no_gpu_and_ends(running):
    async def scenario():
        async with running({"a": 1}, service_s=0.01, limits={"upload_s": 1.5}) as fleet:
            head = b"POST /animate HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n"
            slow = asyncio.create_task(raw(fleet.places["a"].edge, head, b"x", b"x", pause_s=0.1))

            async def under_way() -> bool:
                return await fleet.counter("a", r"http\.edge\.downstream_rq_active") == 1

            await fleet.holds(under_way)
            sent = [(await fleet.jobs(1, fleet.url("a")))[0].status_code]
            while sent[-1] == 408 and len(sent) < 5:  # a machine that stood still in the midst of it
                sent.append((await fleet.jobs(1, fleet.url("a")))[0].status_code)
            assert sent[-1] == 200
            assert fleet.servers["a"][0].started == 1
            assert (await slow).startswith(b"HTTP/1.1 408")

    asyncio.run(scenario())


def test_a_slow_reader_keeps_no_gpu(running):
    async def scenario():
        async with running({"a": 1}, service_s=0.05) as fleet:
            fleet.servers["a"][0].answer = b"v" * (6 * MIB)
            host, port = fleet.places["a"].edge.split(":")
            reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
            writer.write(b"POST /animate HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
            await reader.readexactly(100)

            async def free() -> bool:
                return (await fleet.dispatcher("a")).in_service == 0

            await fleet.holds(free)
            writer.close()

    asyncio.run(scenario())


def test_a_job_may_be_silent_as_long_as_it_is_allowed_to(running):
    async def scenario():
        # A job of 0.8 s is well within its own limit, and beyond that of an upload.
        async with running({"a": 1}, service_s=0.8, jobs={"deadline_s": 3}, limits={"upload_s": 0.5}) as fleet:
            found = [(await fleet.jobs(1, fleet.url("a")))[0].status_code]
            while found[-1] in {408, 504} and len(found) < 5:  # a machine that stood still in the midst of it
                found.append((await fleet.jobs(1, fleet.url("a")))[0].status_code)
            assert found[-1] == 200
            fleet.hold()
            response = (await fleet.jobs(1, fleet.url("a")))[0]
            assert (response.status_code, response.json()["code"]) == (504, "deadline")
            assert response.headers["x-stillmotion-attempts"] == "1"
            assert response.elapsed.total_seconds() > 2.9

    asyncio.run(scenario())


def test_more_connections_than_allowed_are_closed(running):
    async def scenario():
        async with running({"a": 1}, service_s=0.01, limits={"connections": 8}) as fleet:
            await fleet.client.aclose()
            host, port = fleet.places["a"].edge.split(":")
            opened = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
            end = time.monotonic() + 60
            while (closed := sum(reader.at_eof() for reader, _ in opened)) < 12:
                assert time.monotonic() < end, closed
                await asyncio.sleep(0.02)
            for _, writer in opened:
                writer.close()
            assert closed <= 14
            # As soon as the edge has noticed that they are gone.
            async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
                while time.monotonic() < end:
                    with contextlib.suppress(httpx.TransportError):
                        assert (await client.post(fleet.url("a"), content=b"x")).status_code == 200
                        return
                    await asyncio.sleep(0.02)
                pytest.fail("the edge takes no connection")

    asyncio.run(scenario())


def test_a_proxy_short_of_memory_refuses_requests_and_does_not_die(running):
    async def scenario():
        async with running({"a": 1}, service_s=0.01, jobs={"body_limit": "64MiB"}, limits={"heap_mb": 64}) as fleet:
            head = b"POST /animate HTTP/1.1\r\nhost: a\r\ncontent-length: 60000000\r\n\r\n"
            part = b"x" * (20 * MIB)
            uploads = [asyncio.create_task(raw(fleet.places["a"].edge, head, part, limit_s=90)) for _ in range(6)]
            seen, end = set(), time.monotonic() + 60
            while time.monotonic() < end and not seen & {503, "closed"}:
                try:
                    seen.add((await fleet.client.post(fleet.url("a"), content=b"x", timeout=1)).status_code)
                except httpx.TransportError:
                    seen.add("closed")
                await asyncio.sleep(0.05)
            for one in uploads:
                one.cancel()
            await asyncio.gather(*uploads, return_exceptions=True)
            assert seen & {503, "closed"}
            assert fleet.processes["a", "edge"].poll() is None
            await fleet.until(fleet.url("a", "/readyz"))
            assert (await fleet.jobs(1, fleet.url("a")))[0].status_code == 200

    asyncio.run(scenario())


def test_every_proxy_has_its_limits(running):
    async def scenario():
        async with running({"a": 1}) as fleet:
            for path in fleet.root.rglob(BOOTSTRAP):
                content = yaml.safe_load(path.read_text())
                monitors = {one["name"].rpartition(".")[2] for one in content["overload_manager"]["resource_monitors"]}
                assert monitors == {"fixed_heap", "global_downstream_max_connections"}
                for one in content["static_resources"]["listeners"] + content["static_resources"]["clusters"]:
                    assert one["per_connection_buffer_limit_bytes"] > 0

    asyncio.run(scenario())
