"""A server among clients that mean it no good: nothing of what they do stays with it."""

import contextlib
import itertools
import re
import select
import socket
import time

import httpx
import psutil
import pytest

from ..waiting import HTTP
from .conftest import LIMIT_S

MULTIPART = b"POST /animate HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
DAMAGED = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    b"POST /animate HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    (
        b"POST /animate HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    ),
    MULTIPART + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /animate/stream HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"GET /ui/ HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    b"GET \x00 HTTP/1.1\r\n\r\n",
    b"GET http://example.org/animate/ HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"CONNECT example.org:443 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)
ODD = ("/{}", "/ui/{}", "/ui/{}/../x", "/animate/{}", "/%00%1b[31m{}", "//{}/", "/ui/%2e%2e/{}", "/static_content/{}")


def send(server, data):
    """Send bytes, and read until the server closes the connection."""
    received = b""
    with socket.create_connection(server.address, timeout=LIMIT_S) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(data)
        while piece := connection.recv(65536):
            received += piece
    return received


def unknown_paths(client, count):
    """Ask for paths that nobody has; the statuses, of which none may be a server's error."""
    for number, form in zip(range(count), itertools.cycle(ODD), strict=False):
        reply = client.get(form.format(number), follow_redirects=False)
        assert reply.status_code in (307, 401, 404), form
        assert not reply.headers.get("location", "").startswith(("http", "/"))


@contextlib.contextmanager
def slow_connections(server, count, closed):
    """Connections that send nothing, part of a head, or part of a body; where `closed`, the server's limits end all."""
    begun = (b"", b"GET /livez HTTP/1.1\r\nHost: ", b"POST /ui/ HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\na")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(server.address, timeout=LIMIT_S)) for _ in range(count)]
        for connection, data in zip(slow, itertools.cycle(begun), strict=False):
            connection.sendall(data)
        yield
        for connection in slow if closed else ():
            with contextlib.suppress(ConnectionError):
                while connection.recv(65536):
                    pass


def memory(server):
    """Resident bytes of the processes of a server."""
    processes = [server.process.pid, *psutil.Process(server.process.pid).children(recursive=True)]
    return sum(psutil.Process(getattr(one, "pid", one)).memory_info().rss for one in processes)


def hostile_run(server, make, paths, slow, good, closed):
    """One round; milliseconds of refusals while the server is busy, and of round trips while it is not."""
    body, headers = make.body()
    refusals, idle = [], []

    def timed(ask, into):
        began = time.perf_counter()
        reply = ask()
        into.append(1000 * (time.perf_counter() - began))
        return reply

    with httpx.Client(base_url=server.url, timeout=LIMIT_S) as client, slow_connections(server, slow, closed):
        unknown_paths(client, paths)
        for data in DAMAGED:
            assert not re.match(rb"HTTP/1.1 5", send(server, data)), data[:60]
        for _ in range(good):
            timed(lambda: client.get("/livez"), idle)
            with socket.create_connection(server.address, timeout=LIMIT_S) as connection:
                length = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                head = f"POST /animate HTTP/1.1\r\nHost: a\r\nContent-Type: {headers['Content-Type']}\r\n{length}"
                connection.sendall(head.encode() + body)
                reply = timed(lambda: client.post("/animate", content=body, headers=headers), refusals)
                if reply.status_code != 429:
                    refusals.pop()  # it came before the other one, or after it
                assert reply.status_code in (200, 429)
                received = b"".join(iter(lambda: connection.recv(65536), b""))
                assert re.match(rb"HTTP/1.1 (200|429) ", received), received[:200]
                assert 200 in (reply.status_code, int(received[9:12]))
    return sorted(refusals), sorted(idle)


def errors_of(server):
    """Series of answers with a server's error, by BentoML's count; `/readyz` of a server that starts is one."""
    return re.findall(r'.*request_total.*response_code="5.*', server.get("/metrics").text)


def check(server, make, record, *, warm_up, paths, slow, good, growth, closed):
    hostile_run(server, make, *warm_up, closed)  # what is made once and kept
    before, errors = memory(server), errors_of(server)
    refusals, idle = hostile_run(server, make, paths, slow, good, closed)
    after = memory(server)
    page = server.get("/metrics").text
    assert len(page) < 100_000
    assert len(set(re.findall(r'endpoint="([^"]*)"', page))) <= 12
    assert after < before * growth, f"{before / 2**20:.0f} MiB became {after / 2**20:.0f} MiB"
    assert errors_of(server) == errors
    server.wait_until_free()
    events = server.computations()
    assert events == ["begins", "ended"] * (len(events) // 2)
    log = server.log.read_text()
    assert "Traceback" not in log
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", log)
    for name, times in (("refusal", refusals), ("idle", idle)):
        if times:
            for share in (50, 99):
                record(f"{name}_p{share}_ms", round(times[len(times) * share // 100], 1))
    record("memory_mib", (round(before / 2**20), round(after / 2**20)))
    record("metrics_bytes", len(page))


def test_a_hostile_round_leaves_nothing_behind(server, make, record_property):
    # Of memory the first rounds take some for good, which the long run does not count.
    sizes = {"warm_up": (20, 0, 1), "paths": 200, "slow": 30, "good": 2}
    check(server, make, record_property, **sizes, growth=1.2, closed=False)  # the long run waits for limits


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_long_hostile_run_leaves_nothing_behind(start_server, quick_model, make, record_property, capsys):
    server = start_server(model=quick_model, headers_s=20, upload_s=60)
    server.wait_until_ready()

    def record(name, value):
        record_property(name, value)
        with capsys.disabled():
            print(f"{name}: {value}")  # noqa: T201  # figures of a measurement

    sizes = {"warm_up": (200, 200, 50), "paths": 2000, "slow": 200, "good": 1000}
    check(server, make, record, **sizes, growth=1.05, closed=True)


def test_a_request_whose_headers_are_not_utf_8_is_answered_like_any_other(server, make):
    body, headers = make.body()
    for path, odd in itertools.product(
        ("/animate", "/animate/stream"), (b"Content-Type: %s; x=\xff", b"User-Agent: \xff\\N\r\nContent-Type: %s")
    ):
        kind = odd % headers["Content-Type"].encode()
        head = b"POST %s HTTP/1.1\r\nHost: \xfe\\x\r\nConnection: close\r\n%s\r\nContent-Length: %d\r\n\r\n"
        received = send(server, head % (path.encode(), kind, len(body)) + body)
        assert received.startswith(b"HTTP/1.1 200"), received[:100]
        head, _, content = received.partition(b"\r\n\r\n")
        if path == "/animate":
            assert f"content-length: {len(content)}".encode() in head.lower()
        else:
            assert b"event: result" in content
        server.wait_until_free()
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    ("path", "target"), [("/animate/", "../animate"), ("/ui", "ui/"), ("/", "ui/"), ("/livez/", "../livez")]
)
def test_a_redirect_leads_to_this_server_whatever_host_the_request_names(server, path, target):
    reply = HTTP.get(server.url + path, headers={"Host": "example.org"})
    assert (reply.status_code, reply.headers["location"]) == (307, target)


@pytest.mark.parametrize("path", ["/ui/samples", "/ui/samples/", "/ui//", "//example.org/", "/nothing/", "/ui/x/"])
def test_what_is_not_there_is_not_redirected_to(server, path):
    reply = HTTP.get(server.url + path, headers={"Host": "example.org"})
    assert reply.status_code == 404
    assert "location" not in reply.headers


def test_an_endless_body_is_refused_and_its_connection_closed(server):
    chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
    received, sent = b"", 0
    with socket.create_connection(server.address, timeout=LIMIT_S) as connection:
        connection.sendall(MULTIPART + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while sent < 200:  # MiB; the limits, of the body and of what follows it, are below 40
                connection.sendall(chunk)
                sent += 1
                if select.select([connection], [], [], 0)[0]:
                    received += connection.recv(65536)
    assert sent < 200
    assert received.startswith(b"HTTP/1.1 413 ")
