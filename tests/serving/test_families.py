"""Checkpoints of families without a prompt, with two pictures, and with two experts, from folder to served clip."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from .conftest import FAR_LIMITS, ROOT


def small_checkpoint(name, folder):
    """Save a small random checkpoint as diffusers' own class does."""
    path = ROOT / "tests" / "pipeline" / "small_checkpoints.py"
    spec = importlib.util.spec_from_file_location("small_checkpoints", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SMALL[name]().save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields", "passes"),
    [
        ("wan-2.2-a14b", {"prompt": "up", "negative_prompt": "red", "steps": "3", "guidance_scale_2": "2"}, "6"),
        ("wan-2.2-ti2v", {"prompt": "up", "frames": "5", "size": "32x64"}, "4"),
        ("ltx", {"prompt": "up", "guidance_scale": "1"}, "2"),
        ("svd", {"prompt": "", "motion_bucket_id": "200"}, "4"),
        ("hunyuanvideo-1.5", {"prompt": 'a clip of "up"'}, "4"),
    ],
)
def test_a_checkpoint_is_packaged_and_served(name, fields, passes, start_server, make, tmp_path, monkeypatch):

    small_checkpoint(name, tmp_path / "checkpoint")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home"))
    size = "64x32" if name != "svd" else "64x64"
    command = [sys.executable, "-m", "pipeline", "package", "--checkpoint", str(tmp_path / "checkpoint")]
    done = subprocess.run(
        [*command, "--size", size, "--frames", "6" if name == "svd" else "9", "--steps", "2"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder = tmp_path / "home" / "models" / done.stdout.split()[-1].replace(":", "/")
    server = start_server(model=folder, **FAR_LIMITS)
    server.wait_until_ready()
    reply = server.animate(image=make.picture(), **fields)
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-stillmotion-passes"] == passes
    if fields["prompt"]:
        assert server.animate(image=make.picture(), prompt="").json()["field"] == "prompt"
    else:
        assert server.animate(image=make.picture(), prompt="up").json()["code"] == "not_supported"
