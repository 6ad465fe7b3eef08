"""The demo: notebooks to a model in the store, a real server, and animations of pictures over HTTP."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image

from .console import tell
from .errors import StillmotionError
from .images import decode
from .report import DEMO_STAGE, write_report
from .results import StageFolder
from .run import go_on, start
from .samples import Sample, read_samples
from .settings import Parameter

ROOT = Path(__file__).resolve().parent.parent

# Generous, for a busy machine: a server is up in 20 s and animates in 6 s on two cores.
_READY_S = 240.0
_REQUEST_S = 300.0


@dataclass(frozen=True)
class Demo:
    """What a demo leaves.

    Attributes:
        serve: the line that serves the model from now on.
    """

    report: str
    clips: list[str]
    model: str
    serve: str


def demo(
    own: tuple[Path, str] | None,
    runs: Path,
    teacher: str = "",
    port: int = 0,
    parameters: Mapping[str, Parameter] | None = None,
) -> Demo:
    """Run the tiny preset, serve what it packaged, animate, stop the server, and report.

    Args:
        own: a person's picture and prompt; they come before the samples.
        port: of the server; 0 takes a free one.

    Raises:
        StillmotionError: a stage, the server or a request failed; the server is stopped all the same.
    """
    samples = read_samples()
    if own is not None:
        decode(own[0])  # refuse it now, not after minutes
        samples = [Sample(own[0], own[1], 0), *samples]
    run = go_on(start("tiny", teacher, runs, parameters))
    if run.model is None:
        raise StillmotionError("the preset put no model into the store")
    stage = StageFolder(run.folder, DEMO_STAGE, "Served over HTTP")
    began = time.monotonic()
    with serving(run.model, port, stage.path / "server.log") as address:
        ready_s = time.monotonic() - began
        tell(f"server ready after {ready_s:.0f} s: {address}")
        clips, seconds = _animate_all(address, samples, stage)
    stage.row("Start to ready", round(ready_s, 1), "s", "imports, digests, loading, a warm-up animation")
    stage.row(
        "Request over HTTP", round(statistics.median(seconds), 2), "s", f"median of {len(seconds)}", headline=True
    )
    stage.finish(
        f"`bentoml serve` with {run.model}; each clip below the title was sent for with POST /animate.",
        {
            "seconds": round(time.monotonic() - began, 2),
            "ready_s": round(ready_s, 2),
            "request_s": [round(s, 3) for s in seconds],
        },
    )
    line = f"STILLMOTION_MODEL={run.model} {_near(Path(sys.executable).parent / 'bentoml')} serve"
    return Demo(_near(write_report(run.folder)), [_near(clip) for clip in clips], run.model, line)


@contextlib.contextmanager
def serving(model: str, port: int, log: Path, ready_s: float = _READY_S) -> Iterator[str]:
    """A `bentoml serve` of this checkout while the block runs; gives its address.

    Args:
        log: what the server prints goes there.
        ready_s: longest wait until it is ready.

    Raises:
        StillmotionError: it ended or did not become ready; the text has the last line of its log.
    """
    port = port or _free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "bentoml", "serve", ".", "--host", "127.0.0.1", "--port", str(port)]
    tell(f"server starts: {shlex.join(['bentoml', *command[3:]])}")
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches us alone, and we see to it that all its processes end.
        process = subprocess.Popen(  # noqa: S603  # the command is ours
            command,
            cwd=ROOT,
            env={**os.environ, "STILLMOTION_MODEL": model},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_ready(process, address, log, ready_s)
            yield address
        finally:
            _stop(process)
            tell("server stopped")


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path, ready_s: float) -> None:
    end = time.monotonic() + ready_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise StillmotionError(f"the server ended with {process.returncode}: {_last_line(log)} (see {log})")
        try:
            if httpx.get(f"{address}/readyz", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.3)
    raise StillmotionError(f"the server was not ready after {ready_s:.0f} s: {_last_line(log)} (see {log})")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and all that it started, gently first."""
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _animate_all(address: str, samples: list[Sample], stage: StageFolder) -> tuple[list[Path], list[float]]:
    clips, seconds = [], []
    with httpx.Client(base_url=address, timeout=_REQUEST_S) as client:
        for sample in samples:
            began = time.monotonic()
            data = post_animate(client, sample)
            seconds.append(time.monotonic() - began)
            with Image.open(io.BytesIO(sample.path.read_bytes())) as header:
                title = f"{sample.path.name}, {header.width} x {header.height}, seed {sample.seed}"
            clips.append(stage.clip_file(sample.name, title, sample.prompt, data, "mp4", decode(sample.path)))
            tell(f"{sample.path.name}: {sample.prompt}  {seconds[-1]:.1f} s")
    return clips, seconds


def post_animate(client: httpx.Client, sample: Sample) -> bytes:
    """An animation as an MP4 file; a busy server is asked again when it says it will be free.

    Raises:
        StillmotionError: the server refused or failed.
    """
    for _ in range(20):
        response = client.post(
            "/animate",
            files={"image": (sample.path.name, sample.path.read_bytes())},
            data={"prompt": sample.prompt, "seed": str(sample.seed), "format": "mp4"},
        )
        if response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            break
        time.sleep(float(response.headers.get("Retry-After", 1)))
    if response.status_code != httpx.codes.OK:
        raise StillmotionError(f"{sample.path.name}: the server answered {response.status_code}: {response.text[:300]}")
    return response.content


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _near(path: Path) -> str:
    """A path as seen from here, where it is below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
