"""The image itself: built by `bentoml containerize`, started as in production. Skipped where no engine can."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from deploy.container.build import DEFAULT_BASE
from deploy.container.engine import fetch_base, find, fit
from deploy.container.errors import ContainerError
from deploy.container.trial import HARDENED, started

from ...models import small_i2vgen

ROOT = Path(__file__).resolve().parents[3]
TAG = "localhost/stillmotion-test:latest"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # packages are collected, installed and copied


@pytest.fixture(scope="module")
def engine():
    """What builds and starts containers here."""
    try:
        found = find()
        fetch_base(found, DEFAULT_BASE)
        return fit(found, DEFAULT_BASE)
    except ContainerError as error:
        pytest.skip(f"no image can be built here: {error}")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of small models with random weights by runtime, and the store that holds them."""
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.models import ModelStore

    from pipeline.serve.store import describe, save_to_store

    home = tmp_path_factory.mktemp("home")
    (home / "models").mkdir()
    pipe = small_i2vgen(steps=200)  # as many as it takes for an engine to ask for the end while one is being made
    info = describe(pipe, "random weights", {})
    before = BentoMLContainer.model_store.get()
    BentoMLContainer.model_store.set(ModelStore(home / "models"))
    try:
        # The last one is the latest, which gets into the image.
        saved = {
            runtime: save_to_store(pipe, info.changed(runtime=runtime), "# Random weights\n")
            for runtime in ("compile", "torchscript", "eager")
        }
    finally:
        BentoMLContainer.model_store.set(before)
    return home, {runtime: (str(model.tag), Path(model.path)) for runtime, model in saved.items()}


@pytest.fixture(scope="module")
def made(engine, models, tmp_path_factory):
    """What `python -m deploy.container --json` says of an image that it built, tried and stopped."""
    home, _ = models
    out = tmp_path_factory.mktemp("out")
    kept = ROOT / "build" / "container" / "wheels"
    if kept.is_dir():  # of `make container`: they need not be collected again
        (out / "wheels").symlink_to(kept)
    command = [sys.executable, "-m", "deploy.container", "--json", "--tag", TAG, "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"BENTOML_HOME": str(home)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout)
    engine.run("image", "rm", "--force", TAG, check=False)


@pytest.fixture(scope="module")
def running(engine, made):
    """A container of the image that is ready."""
    with started(engine, made["image"]) as container:
        container.wait_until_ready(300)
        yield container


def test_it_animated_and_finished_an_animation_while_it_was_stopped(made):
    # The command fails where it did not; these are its figures.
    assert made["image"] == TAG
    assert made["runtime"] == "eager"
    assert made["fallback"] is None
    assert made["request_s"] > 0
    assert made["stop_s"] > 0
    assert b"ftyp" in Path(made["out"], "clip.mp4").read_bytes()[:12]


def test_its_size_is_that_of_what_serves(made):
    # Torch for the CPU takes about half; with CUDA it is another image.
    with Path(made["out"], "sizes.csv").open(newline="") as file:
        folders = {row["folder"]: float(row["megabytes"]) for row in csv.DictReader(file)}
    if "nvidia" not in folders:
        assert made["size_mb"] < 1300
    assert "pip" not in folders
    assert "torch" in folders


def test_its_lists_name_what_is_inside_and_nothing_that_builds_or_tests(made):
    sbom = json.loads(Path(made["out"], "sbom.cdx.json").read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    urls = {component["purl"].partition("@")[0] for component in sbom["components"]}
    assert {"pkg:pypi/torch", "pkg:pypi/bentoml", "pkg:deb/debian/libc6"} <= urls
    with Path(made["out"], "licenses.csv").open(newline="") as file:
        licences = {row["Name"]: row["License"] for row in csv.DictReader(file)}
    assert licences["bentoml"].startswith("Apache")
    others = {
        "pip",
        "uv",
        "pytest",
        "mypy",
        "ipykernel",
        "jupyterlab",
        "papermill",
        "matplotlib",
        "locust",
        "cyclonedx-bom",
    }
    assert not others & set(licences)
    assert not {f"pkg:pypi/{name}" for name in others} & urls


def test_it_holds_no_compiler_and_no_cache(running):
    found = running.inside("sh", "-c", "for name in gcc cc g++ clang make git; do command -v $name; done; true")
    assert found == ""
    caches = running.inside("sh", "-c", "ls -A /root /home/bentoml 2>/dev/null | grep -i cache; true")
    assert caches == ""
    assert running.inside("sh", "-c", "find /app/.venv -name '*.pyc' | head -3") == ""


def test_it_starts_from_byte_code(running):
    compiled = running.inside("find", "/app/bytecode", "-name", "*.pyc", "-path", "*diffusers*")
    assert compiled
    assert "src/service.cpython" in running.inside("find", "/app/bytecode", "-name", "service.*")


def test_it_is_not_root_and_can_write_to_tmp_alone(running):
    assert int(running.inside("id", "-u")) > 0
    code = (
        "import os\n"
        "for top, folders, _ in os.walk('/'):\n"
        "    if top == '/':\n"
        "        folders[:] = [f for f in folders if f not in ('proc', 'sys', 'dev', 'tmp')]\n"
        "    try:\n"
        "        open(top + '/written', 'w').close()\n"
        "        print(top)\n"
        "    except OSError:\n"
        "        pass\n"
    )
    assert running.inside("python", "-c", code) == ""
    assert running.inside("sh", "-c", "touch /tmp/written && echo yes") == "yes"


def test_engines_see_its_health(engine, running):
    assert engine.image(TAG, "{{json .Config.Healthcheck}}") not in {"", "null"}
    if engine.runner == "podman":
        assert engine.run("healthcheck", "run", running.name, check=False).returncode == 0


def test_it_answers_while_it_animates_and_refuses_a_second_request(running):
    form = {"files": {"image": ("a.png", (ROOT / "assets/balloon.png").read_bytes())}, "data": {"prompt": "x"}}
    with httpx.stream("POST", f"{running.url}/animate/stream", **form, timeout=60) as first:
        events = first.iter_lines()
        assert next(events) == "event: start"
        assert httpx.get(f"{running.url}/readyz", timeout=10).status_code == 200
        second = httpx.post(f"{running.url}/animate", **form, timeout=10)
        assert (second.status_code, second.content) == (429, b"")
        assert "retry-after" in second.headers


@pytest.mark.parametrize(("runtime", "runs_on"), [("torchscript", "torchscript"), ("compile", "eager")])
def test_a_mounted_model_is_served_by_its_own_runtime_or_says_why_not(engine, made, models, runtime, runs_on):
    _, folders = models
    with started(engine, made["image"], model=folders[runtime][1]) as container:
        container.wait_until_ready(300)
        metrics = httpx.get(f"{container.url}/metrics", timeout=10).text
        (described,) = [line for line in metrics.splitlines() if line.startswith("stillmotion_model_info{")]
        assert f'runtime="{runs_on}"' in described
        assert container.animate()
        fell = "compile: there is no C++ compiler here; the network runs without it, slower"
        assert (fell in container.log()) == (runtime != runs_on)


def test_a_container_without_its_model_ends_with_one_line(engine, made):
    with started(engine, made["image"], variables={"STILLMOTION_MODEL": "/models/none"}) as container:
        with pytest.raises(ContainerError, match="the container ended before it was ready: stillmotion: /models/none"):
            container.wait_until_ready(120)
        assert container.exit_status() == 1
        assert "Traceback" not in container.log()


def test_what_it_is_started_with_takes_all_rights():
    assert "--read-only" in HARDENED
    assert HARDENED[HARDENED.index("--cap-drop") + 1] == "ALL"
