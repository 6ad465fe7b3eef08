"""The job service on Kubernetes: what its manifests say is what the program takes."""

import subprocess
import sys

import yaml

from jobs.settings import PREFIX, Settings

from .conftest import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
RESOURCES = list(yaml.safe_load_all((FOLDER / "base" / "jobs" / "jobs.yaml").read_text()))
POD = RESOURCES[0]["spec"]["template"]["spec"]

# Of a package that is None in sys.modules an import fails, as where it is not installed.
WITHOUT = """
import sys
for name in ("numpy", "torch", "bentoml", "diffusers", "pipeline", "serving", "routing", "aiohttp"):
    sys.modules[name] = None
from jobs.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def packages():
    command = [sys.executable, FOLDER / "jobs" / "packages.py", ROOT / "pyproject.toml"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_pods_can_do_no_more_than_they_need_and_get_the_time_to_drain():
    assert POD["securityContext"]["runAsNonRoot"]
    (container,) = POD["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    (drain_s,) = [one["value"] for one in container["env"] if one["name"].endswith("DRAIN_S")]
    assert POD["terminationGracePeriodSeconds"] >= float(drain_s) + 20


def test_variables_are_settings_of_the_program():
    (container,) = POD["containers"]
    names = {one["name"].removeprefix(PREFIX).lower() for one in container["env"]}
    assert names <= set(Settings.model_fields)


def test_the_image_installs_what_the_program_needs(tmp_path):
    assert {"obstore", "sqlalchemy", "starlette"} <= {line.partition(">")[0] for line in packages()}
    assert not [line for line in packages() if line.startswith(("numpy", "torch"))]
    (container,) = POD["containers"]
    settings = tmp_path / "jobs.yaml"
    settings.write_text("keys: 3\n")
    arguments = [part.replace("/etc/stillmotion/jobs.yaml", str(settings)) for part in container["args"]]
    command = [sys.executable, "-c", WITHOUT, *arguments, "--upstream", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "keys: " in done.stderr
    # And with all that it imports to serve.
    loading = WITHOUT.replace("from jobs.__main__ import main\nsys.exit(main(sys.argv[1:]))", "import jobs.app")
    assert subprocess.run([sys.executable, "-c", loading], check=False, cwd=ROOT).returncode == 0


def test_the_user_of_the_image_is_that_of_the_pods():
    assert f"USER {POD['securityContext']['runAsUser']}:" in (FOLDER / "jobs" / "Dockerfile").read_text()
