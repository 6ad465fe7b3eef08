"""Fixtures of the service's tests: a small random model, real servers of it, and an engine in a test's hands."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
from PIL import Image

from .. import waiting
from ..models import small_i2vgen
from ..ports import free_port
from ..waiting import HTTP, status_of
from .bench import Bench, Loop, until

ROOT = Path(__file__).resolve().parents[2]
STEPS = 24
LIMIT_S = 600
"""How long an answer may take before a test gives up: a machine that does other work stalls for seconds."""
FAR_LIMITS = {"headers_s": 600, "upload_s": 600, "send_s": 600, "deadline_s": 3000}
"""Settings of a server that no stall brings to its limits; a test of a limit sets that one."""


@pytest.fixture(scope="session")
def packaged_model():
    """A tiny model, saved as `animator:latest`."""
    from pipeline.serve.store import describe, save_to_store

    pipe = small_i2vgen(steps=STEPS)
    return save_to_store(pipe, describe(pipe, "random weights", {}), "# Random weights\n")


@pytest.fixture
def quick_model(tmp_path):
    """The folder of a tiny model that takes a single step."""
    from pipeline.serve.store import describe, write_package

    pipe, folder = small_i2vgen(steps=1), tmp_path / "quick"
    write_package(pipe, folder, describe(pipe, "random weights", {}), "# Random weights\n")
    return folder


def stock(home: Path, model) -> None:
    """Make a store with this one model, which is the latest there, whatever other tests package meanwhile."""
    folder = home / "models" / model.tag.name
    folder.mkdir(parents=True)
    (folder / model.tag.version).symlink_to(model.path)
    (folder / "latest").write_text(model.tag.version)


class Server:
    """A `bentoml serve` process with a home of its own (a shared one would mix up the metrics)."""

    def __init__(self, home: Path, log: Path, **settings) -> None:
        models = Path(os.environ["BENTOML_HOME"]) / "models"
        home.mkdir(parents=True, exist_ok=True)
        if models.is_dir() and not (home / "models").exists():
            (home / "models").symlink_to(models)
        self.url, self.log = f"http://127.0.0.1:{free_port()}", log
        environment = os.environ | {
            "BENTOML_HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **{f"STILLMOTION_{name.upper()}": str(value) for name, value in settings.items()},
        }
        address = ["--host", "127.0.0.1", "--port", self.url.rpartition(":")[2]]
        command = [sys.executable, "-m", "bentoml", "serve", *address]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def get(self, path: str) -> httpx.Response:
        return HTTP.get(self.url + path)

    def animate(self, path: str = "/animate", timeout: float = LIMIT_S, **fields) -> httpx.Response:
        files, data = form(**fields)
        return HTTP.post(self.url + path, files=files, data=data, timeout=timeout)

    def status_of(self, path: str) -> int | None:
        return status_of(self.url + path)

    def wait_until_ready(self, timeout_s: float = LIMIT_S) -> list[int]:
        """Statuses of `/readyz` on the way, without repetitions."""
        seen: list[int] = []
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            status = self.status_of("/readyz")
            if status is not None and seen[-1:] != [status]:
                seen.append(status)
            if status == 200:
                return seen
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)
        raise AssertionError(f"not ready: {seen}\n{self.log.read_text()}")

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's series that have these labels."""
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            if re.split(r"[{ ]", series)[0] == name and all(f'{k}="{v}"' in series for k, v in labels.items()):
                total += float(value)
        return total

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        waiting.until(condition, lambda: f"{what}\n{self.log.read_text()}", LIMIT_S)

    def wait_until_free(self) -> None:
        self.wait_until(lambda: self.metric("stillmotion_load") == 0, "the slot is free")

    def computations(self) -> list[str]:
        """Beginnings and ends of computations, in the order of the log."""
        return re.findall(r"computing (begins|ended)", self.log.read_text())

    def stop(self) -> int:
        """End it as an orchestrator would; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                    process.kill()
        return self.process.wait(LIMIT_S)


@pytest.fixture(scope="session")
def server(packaged_model, tmp_path_factory):
    """A server that all tests share; each leaves it free."""
    assert packaged_model.tag.name == "animator"  # the latest one, which a server takes by itself
    folder = tmp_path_factory.mktemp("server")
    stock(folder / "home", packaged_model)
    server = Server(folder / "home", folder / "log", region="test-1", **FAR_LIMITS)
    try:
        server.ready_seen = server.wait_until_ready()
        yield server
    finally:
        status = server.stop()
    assert status == 0, "something that a test did keeps the server from stopping"


@pytest.fixture
def start_server(tmp_path):
    """Starts a server of a test's own."""
    started = []

    def start(**settings) -> Server:
        server = Server(tmp_path / f"home-{len(started)}", tmp_path / f"log-{len(started)}", **settings)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def damaged_model(packaged_model, tmp_path):
    """A copy of the model in which one byte of a file was changed after it was packaged."""
    folder = tmp_path / "damaged"
    shutil.copytree(packaged_model.path, folder)
    with (folder / "vae" / "config.json").open("a", encoding="utf-8") as file:
        file.write(" ")
    return folder


def picture(size=(48, 40), mode="RGB", file_format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    colour = {"RGB": (200, 40, 40), "CMYK": (0, 200, 200, 20)}.get(mode, 1)
    Image.new(mode, size, colour).save(buffer, format=file_format, **options)
    return buffer.getvalue()


def form(image: bytes | str | None = None, prompt: bytes | str = "a red circle moves right", **fields):
    """Files and data of a request; a str as `image` is sent as text."""
    image = picture() if image is None else image
    data = {"prompt": prompt, **fields}
    if isinstance(image, str):
        # A file without a name is how httpx sends a text field beside others as multipart.
        return {"image": (None, image)}, data
    return {"image": ("picture.png", image)}, data


def body_of(image: bytes | None = None, **fields) -> tuple[bytes, dict[str, str]]:
    """The same as bytes and headers, for tests that speak HTTP by hand."""
    files, data = form(image, **fields)
    request = httpx.Request("POST", "http://test/animate", files=files, data=data)
    return request.read(), {"Content-Type": request.headers["Content-Type"]}


@pytest.fixture
def make():
    """Pictures and bodies of requests."""
    return SimpleNamespace(picture=picture, form=form, body=body_of)


@pytest.fixture
def bench(make):
    """The middleware around an engine that a test holds in its hands."""
    return lambda **settings: Bench(make, **FAR_LIMITS | settings)


@pytest.fixture(name="until")
def until_fixture():
    """Waits for a condition, in a test's event loop."""
    return until


@pytest.fixture
def run():
    """Runs a test's coroutine, in a loop whose clock `put_clock_forward` moves."""

    def run_in_loop(test):
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(test())

    return run_in_loop
