"""Starts an image as in production, asks it for animations over HTTP, and stops it during one."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from .engine import Engine, last_line
from .errors import ContainerError

PICTURE = Path(__file__).resolve().parents[2] / "assets" / "balloon.png"
PROMPT = "a red circle moves up"

# More than a request may take (STILLMOTION_UPLOAD_S, _DEADLINE_S, the step that overruns it, _SEND_S), so that an
# engine does not kill what is still being made.
STOP_S = 220

# What the image needs to be started with, and all that it is granted.
HARDENED = (
    "--read-only",
    "--tmpfs",
    "/tmp:rw,exec,nosuid,nodev,mode=1777",  # noqa: S108  # in the container; programs of a model are opened there
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
)


@dataclass(frozen=True)
class Trial:
    """How a container behaved.

    Attributes:
        ready_s: from the command that starts it to the first 200 of `/readyz`.
        request_s: of one animation over HTTP.
        stop_s: from the command that stops it to its end, with an animation in flight.
        user: number of the user that it runs as.
        runtime: what the model runs on, as `/metrics` says.
        fallback: why that is not what the model names; None where it is.
    """

    ready_s: float
    request_s: float
    stop_s: float
    user: int
    runtime: str
    fallback: str | None


class Container:
    """A running container of an image."""

    def __init__(self, engine: Engine, name: str, url: str, started: float) -> None:
        self.engine, self.name, self.url, self._started = engine, name, url, started

    def wait_until_ready(self, timeout_s: float) -> float:
        """Seconds from the start until it is ready.

        Raises:
            ContainerError: it ended, or was not ready in time.
        """
        while time.monotonic() < self._started + timeout_s:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == httpx.codes.OK:
                    return time.monotonic() - self._started
            if not self.running():
                raise ContainerError(f"the container ended before it was ready: {last_line(self.log())}")
            time.sleep(0.1)
        raise ContainerError(f"the container was not ready after {timeout_s:.0f} s: {last_line(self.log())}")

    def running(self) -> bool:
        state = self.engine.run("inspect", "--format", "{{.State.Running}}", self.name, check=False)
        return state.stdout.strip() == "true"

    def exit_status(self) -> int:
        return int(self.engine.run("inspect", "--format", "{{.State.ExitCode}}", self.name).stdout)

    def log(self) -> str:
        got = self.engine.run("logs", self.name, check=False)
        return got.stdout + got.stderr

    def inside(self, *command: str) -> str:
        """Output of a command in the container."""
        return self.engine.run("exec", self.name, *command).stdout.strip()

    def animate(self) -> bytes:
        """A video of the sample picture.

        Raises:
            ContainerError: it was refused.
        """
        answer = httpx.post(f"{self.url}/animate", files=_form(), data={"prompt": PROMPT}, timeout=180)
        if answer.status_code != httpx.codes.OK:
            raise ContainerError(f"/animate answered {answer.status_code}: {answer.text[:200]}")
        return answer.content

    def stop_while_animating(self) -> float:
        """Ask for an animation, stop the container as soon as it is being made, and see both end well.

        Returns:
            Seconds from the command to the container's end.

        Raises:
            ContainerError: the animation was not finished, or the container did not end with 0.
        """
        events: list[str] = []
        took: list[float] = []

        def stop() -> None:
            began = time.monotonic()
            self.engine.run("stop", "--time", str(STOP_S), self.name)
            took.append(time.monotonic() - began)

        stopping = threading.Thread(target=stop)
        with contextlib.suppress(httpx.TransportError):
            form = {"files": _form(), "data": {"prompt": PROMPT}}
            with httpx.stream("POST", f"{self.url}/animate/stream", **form, timeout=180) as answer:  # type: ignore[arg-type]  # httpx's own types
                for line in answer.iter_lines():
                    if line.startswith("event: "):
                        events.append(line.removeprefix("event: "))
                        if events == ["start"]:
                            stopping.start()
        if not stopping.ident:
            raise ContainerError(f"/animate/stream answered {answer.status_code} and no events")
        stopping.join()
        if events[-1:] != ["result"]:
            raise ContainerError(f"stopping cut an animation off: its last event was {events[-1]}")
        if status := self.exit_status():
            raise ContainerError(f"the container ended with {status}: {last_line(self.log())}")
        if not took:
            raise ContainerError(f"{self.engine.runner} stop failed")
        return took[0]


@contextlib.contextmanager
def started(
    engine: Engine, image: str, model: Path | None = None, port: int = 0, variables: dict[str, str] | None = None
) -> Iterator[Container]:
    """A container of an image while the block runs; it is removed afterwards.

    Args:
        model: folder of a packaged model, to be mounted; None: the image has one.
        port: on this machine; 0 takes a free one.
        variables: of the container's environment.
    """
    port = port or free_port()
    name = f"stillmotion-trial-{port}"
    options = ["--detach", "--name", name, "--publish", f"127.0.0.1:{port}:3000", *engine.start_options, *HARDENED]
    if engine.runner == "podman":
        options.append("--read-only-tmpfs=false")  # as Docker has it: nothing else can be written
    variables = dict(variables or {})
    if model is not None:
        options += ["--volume", f"{model}:/models/animator:ro"]
        variables["STILLMOTION_MODEL"] = "/models/animator"
    for key, value in variables.items():
        options += ["--env", f"{key}={value}"]
    began = time.monotonic()
    try:
        engine.run("run", *options, image)
        yield Container(engine, name, f"http://127.0.0.1:{port}", began)
    finally:
        engine.run("rm", "--force", name, check=False)


def free_port() -> int:
    """A port on this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def try_out(container: Container, out: Path, tell: Callable[[str], None], ready_s: float = 600) -> Trial:
    """Wait, look inside, animate and stop; the video goes to `out/clip.mp4`.

    Raises:
        ContainerError: it does not do what it should; the text says what.
    """
    waited = container.wait_until_ready(ready_s)
    tell(f"ready after {waited:.1f} s: {container.url}")
    user = int(container.inside("id", "-u"))
    if user == 0:
        raise ContainerError("the container runs as root")
    container.inside("python", "src/serving/ready.py")  # the health check itself; fails where it does
    runtime, fallback = _runtime(container)
    began = time.monotonic()
    (out / "clip.mp4").write_bytes(container.animate())
    took = time.monotonic() - began
    tell(f"animated over HTTP in {took:.2f} s: {out / 'clip.mp4'}")
    stopped = container.stop_while_animating()
    tell(f"stopped in {stopped:.1f} s; the animation in flight was finished")
    return Trial(waited, took, stopped, user, runtime, fallback)


def _runtime(container: Container) -> tuple[str, str | None]:
    """What the model runs on, and the line of the log that says why it is not what it names."""
    metrics = httpx.get(f"{container.url}/metrics", timeout=10).text
    line = next((line for line in metrics.splitlines() if line.startswith("stillmotion_model_info")), "")
    runtime = line.partition('runtime="')[2].partition('"')[0] or "unknown"
    fell = [line for line in container.log().splitlines() if "the network runs without it" in line]
    return runtime, fell[-1].partition("] ")[2] or fell[-1] if fell else None


def _form() -> dict[str, tuple[str, bytes, str]]:
    return {"image": (PICTURE.name, PICTURE.read_bytes(), "image/png")}
