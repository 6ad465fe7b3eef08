"""Container engines: which one is here, how it starts containers here, and the few commands that are needed of it."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .errors import ContainerError

BUILDERS = ("docker", "podman", "buildah")

_NONE = (
    "no container engine: neither Docker (with its daemon), podman nor buildah is here; "
    "on Debian and Ubuntu: apt-get install buildah podman"
)


@dataclass(frozen=True)
class Engine:
    """Builds images and starts them.

    Attributes:
        builder: docker, podman or buildah; `bentoml containerize` calls it a back end.
        runner: docker or podman.
        environment: variables that the builder needs here.
        start_options: what `runner run` needs here beside the image's own needs.
    """

    builder: str
    runner: str
    environment: Mapping[str, str] = field(default_factory=dict)
    start_options: tuple[str, ...] = ()

    def has_image(self, name: str) -> bool:
        return self.run("image", "inspect", name, check=False).returncode == 0

    def image(self, name: str, template: str) -> str:
        """What a template of Go says of an image."""
        return self.run("image", "inspect", "--format", template, name).stdout.strip()

    def run(self, *arguments: str, check: bool = True, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command of the runner.

        Raises:
            ContainerError: it failed, and `check` is set.
        """
        done = _run([self.runner, *arguments], timeout_s=timeout_s)
        if check and done.returncode:
            raise ContainerError(f"{self.runner} {arguments[0]} failed: {last_line(done.stderr)}")
        return done


def find(wanted: str | None = None, which: Callable[[str], str | None] = shutil.which) -> Engine:
    """The engine to use: Docker where its daemon answers, else buildah, else podman.

    Raises:
        ContainerError: there is none, or not the wanted one, or it builds but nothing starts what it built.
    """
    here = {name for name in BUILDERS if which(name)}
    # Docker's client alone builds nothing.
    if "docker" in here and wanted in {None, "docker"} and _run(["docker", "info"], timeout_s=60).returncode:
        if wanted:
            raise ContainerError("docker: its daemon does not answer; start it, or give another --engine")
        here.remove("docker")
    if wanted and wanted not in here:
        raise ContainerError(f"{wanted} is not installed; on Debian and Ubuntu: apt-get install {wanted}")
    builder = wanted or next((name for name in ("docker", "buildah", "podman") if name in here), None)
    if builder is None:
        raise ContainerError(_NONE)
    if builder == "docker":
        return Engine("docker", "docker")
    if "podman" not in here:
        raise ContainerError("buildah builds images, and podman starts them: apt-get install podman")
    # The format of OCI has no health check.
    return Engine(builder, "podman", {"BUILDAH_FORMAT": "docker"})


def fetch_base(engine: Engine, base: str) -> None:
    """See to it that the base image is here.

    Raises:
        ContainerError: it is not, and cannot be had from a registry.
    """
    if engine.has_image(base):
        return
    pulled = engine.run("pull", "--quiet", base, check=False)
    if pulled.returncode:
        raise ContainerError(
            f"the base image {base} is not here, and no registry gives it ({last_line(pulled.stderr)}). Name another "
            "with --base, or make a stand-in from Debian's packages: sudo deploy/container/base.sh"
        )


def fit(engine: Engine, base: str) -> Engine:
    """The engine with what it needs on this machine, found by trying.

    Within a virtual machine or another container, an engine's defaults may ask for more than the system grants.

    Raises:
        ContainerError: it can neither build nor start anything.
    """
    if engine.runner == "docker":
        return engine
    return replace(engine, environment=_building(engine, base), start_options=_starting(engine, base))


def _building(engine: Engine, base: str) -> Mapping[str, str]:
    tag = "localhost/stillmotion-probe:latest"
    # A choice of the person who builds stands.
    ways = [{}] if "BUILDAH_ISOLATION" in os.environ else [{}, {"BUILDAH_ISOLATION": "chroot"}]
    said = ""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Dockerfile").write_text(f"FROM {base}\nRUN true\n", encoding="utf-8")
        for way in ways:
            environment = {**engine.environment, **way}
            done = _run([engine.builder, "build", "--no-cache", "--tag", tag, folder], environment)
            if done.returncode == 0:
                engine.run("image", "rm", tag, check=False)
                return environment
            said = last_line(done.stderr)
    raise ContainerError(f"{engine.builder} builds nothing here: {said}")


def _starting(engine: Engine, base: str) -> tuple[str, ...]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = ("--ulimit", f"nofile={files}:{files}", "--ulimit", "nproc=4096:4096")
    ways: list[tuple[str, ...]] = [(), limits]
    if shutil.which("runc"):
        ways += [("--runtime", "runc"), ("--runtime", "runc", *limits)]
    said = ""
    for way in ways:
        done = _run([engine.runner, "run", "--rm", *way, "--publish", "127.0.0.1::3000", "--entrypoint", "true", base])
        if done.returncode == 0:
            return way
        said = last_line(done.stderr)
    raise ContainerError(f"{engine.runner} starts no container here: {said}")


def last_line(text: str) -> str:
    """Of what a command said."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it says nothing")


def _run(
    command: Sequence[str], environment: Mapping[str, str] | None = None, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603  # an engine, with arguments of ours
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer for {timeout_s:.0f} s")
