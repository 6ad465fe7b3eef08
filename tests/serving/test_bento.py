"""`bentoml build` makes a Bento that holds what a server needs, and nothing else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .conftest import stock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bento(packaged_model, tmp_path_factory):
    """A Bento's folder."""
    home = tmp_path_factory.mktemp("home")
    stock(home, packaged_model)
    environment = os.environ | {"BENTOML_HOME": str(home)}
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = [path for path in (home / "bentos" / "stillmotion").iterdir() if path.is_dir()]
    return folder


def test_the_model_is_pinned(bento, packaged_model):
    description = yaml.safe_load((bento / "bento.yaml").read_text())
    assert [model["tag"] for model in description["models"]] == [str(packaged_model.tag)]


def test_training_tests_and_data_stay_out(bento):
    names = {path.relative_to(bento / "src").as_posix() for path in (bento / "src").rglob("*") if path.is_file()}
    assert {"service.py", "pipeline/serve/engine.py", "serving/ui/index.html", "serving/ui/samples/ball.png"} <= names
    assert not [name for name in names if name.startswith(("tests", "notebooks", "training", "pipeline/train", "runs"))]
    assert not [name for name in names if name.endswith((".pyc", ".safetensors"))]


def test_its_sources_are_enough_to_load_a_model(bento, packaged_model):
    code = (
        "import pathlib, service, pipeline.serve.engine\n"
        f"animator = pipeline.serve.engine.Animator.load(pathlib.Path({packaged_model.path!r}), device='cpu')\n"
        "print(pathlib.Path(service.__file__).parent, animator.info.steps)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=bento / "src", capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == str(bento / "src")


def test_its_packages_are_those_of_the_lock(bento):
    # A package may stand there more than once, for versions of Python that need different releases.
    pins = re.compile(r"^([a-z0-9._-]+)==([^\s;]+)", re.MULTILINE)
    locked = set(pins.findall((ROOT / "constraints.txt").read_text()))
    wanted = set(pins.findall((bento / "env/python/requirements.txt").read_text()))
    assert {"bentoml", "torch", "diffusers", "av"} <= {name for name, _ in wanted}
    assert wanted - locked == set()
