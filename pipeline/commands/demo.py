"""The demo: a first clip from the shipped student, then the notebooks, and the same picture from what they packaged."""

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
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image

from ..console import tell
from ..errors import StillmotionError
from ..media.images import decode
from ..runs.notebooks import last_line
from ..runs.report import DEMO_STAGE, write_report
from ..runs.results import StageFolder
from ..runs.run import RunError, go_on, start
from ..runs.settings import Parameter, Sample, read_samples
from ..serve.sources import EMBEDDED_STUDENT

ROOT = Path(__file__).resolve().parents[2]

# Generous, for a machine that is busy with other work: alone, a server is up in 10 s and animates in half a second.
_READY_S = 900.0
_REQUEST_S = 900.0


@dataclass(frozen=True)
class Demo:
    """What a demo leaves.

    Attributes:
        model: tag of the model that the notebooks packaged.
        serve: the line that serves the model from now on.
    """

    report: str
    clips: list[str]
    model: str
    serve: str


class NothingPackaged(StillmotionError):
    """The notebooks packaged no model. What is shipped is served all the same; the report says how far they came."""


def demo(
    own: tuple[Path, str] | None,
    runs: Path,
    teacher: str = "",
    port: int = 0,
    parameters: Mapping[str, Parameter] | None = None,
    preset: str = "tiny",
) -> Demo:
    """Animate a picture with the shipped student, run a preset, animate with what it packaged, and report.

    Args:
        own: a person's picture and prompt; they come before the samples.
        port: of the server with the shipped student; 0 takes a free one.
        parameters: of the notebooks; they win over the preset's.
        preset: of the notebooks, by its name or file.

    Raises:
        NothingPackaged: a stage failed, or a student fell short of a gate.
        StillmotionError: a server or a request failed; servers are stopped all the same.
    """
    samples = read_samples()
    if own is not None:
        decode(own[0])  # refuse it now, not after minutes
        samples = [Sample(own[0], own[1], 0), *samples]
    began = time.monotonic()
    folder = start(preset, teacher, runs, parameters)
    stage = StageFolder(folder, DEMO_STAGE, "Served over HTTP")
    clips: list[Path] = []
    request_s: list[float] = []
    with serving(str(EMBEDDED_STUDENT), port, stage.path / "shipped.log") as address, jobs_beside(address) as jobs:
        ready_s = time.monotonic() - began
        clips.append(_animate(address, samples[0], stage, "shipped student", "-shipped")[0])
        tell(f"first clip after {time.monotonic() - began:.0f} s, from the shipped student: {_near(clips[0])}")
        tell(f"jobs for the openai package: base_url={jobs}/v1")
        tell(f"more of it while the notebooks run: {jobs}/ui")
        failure, model = "", ""
        try:
            run = go_on(folder)
            model = run.model or ""
            failure = "" if model else "the preset put no model into the store"
        except RunError as error:
            failure = str(error)
        if not model:
            for sample in samples[1:]:
                clip, seconds = _animate(address, sample, stage, "shipped student")
                clips.append(clip)
                request_s.append(seconds)
    if model:
        with serving(model, 0, stage.path / "server.log") as address:
            for sample in samples:
                clip, seconds = _animate(address, sample, stage, "packaged in this run")
                clips.append(clip)
                request_s.append(seconds)
                tell(f"{sample.path.name}: {sample.prompt}  {seconds:.1f} s")
    stage.row("Start to ready", round(ready_s, 1), "s", "imports, digests, loading, a warm-up animation")
    stage.row(
        "Request over HTTP", round(statistics.median(request_s), 2), "s", f"median of {len(request_s)}", headline=True
    )
    served = model or "the shipped student, since this run packaged none"
    stage.finish(
        f"`bentoml serve` with {served}; each clip below the title was sent for with POST /animate.",
        {
            "seconds": round(time.monotonic() - began, 2),
            "ready_s": round(ready_s, 2),
            "request_s": [round(s, 3) for s in request_s],
        },
    )
    report = _near(write_report(folder))
    line = serve_line(model or _near(EMBEDDED_STUDENT))
    if failure:
        raise NothingPackaged(
            f"{failure}\nthe shipped student is served instead; what the notebooks came to is in the report"
            f"\nreport  {report}\nnext    {line}"
        )
    return Demo(report, [_near(clip) for clip in clips], model, line)


def serve_line(model: str) -> str:
    """Return what a person types to serve a model of the store, or a packaged model's folder."""
    return f"STILLMOTION_MODEL={shlex.quote(model)} {_near(Path(sys.executable).parent / 'bentoml')} serve"


@contextlib.contextmanager
def serving(model: str, port: int, log: Path, ready_s: float = _READY_S) -> Iterator[str]:
    """Run `bentoml serve` of this checkout while the block runs, and give its address.

    Args:
        log: what the server prints goes there.
        ready_s: longest wait until it is ready.
    """
    port = port or _free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "bentoml", "serve", ".", "--host", "127.0.0.1", "--port", str(port)]
    tell(f"server starts: STILLMOTION_MODEL={shlex.quote(_near(Path(model)))} {shlex.join(['bentoml', *command[3:]])}")
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


@contextlib.contextmanager
def jobs_beside(address: str) -> Iterator[str]:
    """The job service in front of a server, while the block runs; gives its address. Nobody waits until it answers."""
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="jobs-") as data:
        command = [sys.executable, "-m", "jobs", "serve", "--upstream", address, "--port", str(port), "--data", data]
        process = subprocess.Popen(  # noqa: S603  # the command is ours
            command,
            cwd=ROOT,
            env={**os.environ, "STILLMOTION_JOBS_DRAIN_S": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path, ready_s: float) -> None:
    end = time.monotonic() + ready_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise StillmotionError(f"the server ended with {process.returncode}: {last_line(log)} (see {log})")
        try:
            if httpx.get(f"{address}/readyz", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.3)
    raise StillmotionError(f"the server was not ready after {ready_s:.0f} s: {last_line(log)} (see {log})")


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


def _animate(address: str, sample: Sample, stage: StageFolder, model: str, suffix: str = "") -> tuple[Path, float]:
    """Ask a server for one clip and keep it in the stage's folder; gives its file and the seconds that it took."""
    with httpx.Client(base_url=address, timeout=_REQUEST_S) as client:
        began = time.monotonic()
        data = post_animate(client, sample)
        seconds = time.monotonic() - began
    with Image.open(io.BytesIO(sample.path.read_bytes())) as header:
        title = f"{sample.path.name}, {header.width} x {header.height}, {model}"
    clip = stage.clip_file(f"{sample.name}{suffix}", title, sample.prompt, data, "mp4", decode(sample.path))
    return clip, seconds


def post_animate(client: httpx.Client, sample: Sample) -> bytes:
    """Return an animation as an MP4 file; a busy server is asked again when it says it will be free."""
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


def _near(path: Path) -> str:
    """Return a path as seen from here, where it is below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
