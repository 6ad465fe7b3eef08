"""What helps within the image's build and in a container."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.container.inventory import debian_components, os_release, sizes
from deploy.container.packages import packages
from deploy.container.wheels import goes_elsewhere

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("extra", ["serve", "deploy"])
def test_each_package_of_a_stage_stands_in_the_lock_that_it_installs_by(extra):
    lock = (ROOT / ("serving/requirements.txt" if extra == "serve" else "constraints.txt")).read_text()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lock.splitlines() if "==" in line}
    wanted = {canonicalize_name(Requirement(line).name) for line in packages(PROJECT, extra)}
    assert wanted
    assert wanted <= pinned


def test_the_serving_image_asks_for_what_the_project_itself_needs_too():
    assert set(PROJECT["dependencies"]) < set(packages(PROJECT, "serve"))
    assert not set(PROJECT["dependencies"]) & set(packages(PROJECT, "deploy"))


def test_packages_of_debian_become_components_with_urls():
    release = os_release('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    (component,) = debian_components("libstdc++6\t1:12.2.0-14+deb12u1\tamd64\n", release)
    assert component["name"] == "libstdc++6"
    assert component["version"] == "1:12.2.0-14+deb12u1"
    # As https://github.com/package-url/purl-spec has it.
    assert component["purl"] == "pkg:deb/debian/libstdc%2B%2B6@1%3A12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12"


def test_sizes_are_by_the_first_name_and_the_largest_comes_first(tmp_path):
    for name, size in (("torch/lib/a.so", 3_000_000), ("torch/b.py", 500_000), ("six.py", 100_000)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    (tmp_path / "link").symlink_to(tmp_path / "torch/lib/a.so")
    assert sizes(tmp_path) == [("torch", 3.5), ("six.py", 0.1)]


@pytest.mark.parametrize(
    ("configuration", "found"),
    [
        ("", []),
        (":env:.timeout='60'\nglobal.disable-pip-version-check='1'\n", []),
        ("global.index-url='https://mirror.example/simple'\n", ["index-url"]),
        (":env:.find_links='/wheels'\nsite.cert='/etc/ca.pem'\n", ["find-links", "cert"]),
    ],
)
def test_pip_that_does_not_go_straight_to_pypi_is_noticed(configuration, found):
    assert goes_elsewhere(configuration) == found


@pytest.fixture
def server():
    """Answers `/readyz` with what `status` says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(self.server.status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def health(**variables):
    environment = {name: value for name, value in os.environ.items() if name not in {"PORT", "BENTOML_PORT"}}
    command = [sys.executable, str(ROOT / "serving" / "ready.py")]
    return subprocess.run(
        command, env={**environment, **variables}, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(("status", "exit_status"), [(200, 0), (503, 1), (500, 1)])
@pytest.mark.parametrize("variable", ["PORT", "BENTOML_PORT"])
def test_the_health_check_follows_readyz(server, status, exit_status, variable):
    server.status = status
    done = health(**{variable: str(server.server_port)})
    assert done.returncode == exit_status
    assert done.stdout == f"/readyz on port {server.server_port}: {status}\n"


def test_a_server_that_is_not_there_is_not_healthy(server):
    port = str(server.server_port)
    server.shutdown()
    server.server_close()
    done = health(PORT=port)
    assert (done.returncode, done.stdout) == (1, f"/readyz on port {port}: no answer\n")
