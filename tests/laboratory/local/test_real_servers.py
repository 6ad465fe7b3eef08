"""A fleet of real `bentoml serve` processes, with the shipped teacher."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from laboratory.local.launch import Options, running
from laboratory.local.processes import marked

from .conftest import LocalFleet, make_fleet

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with the shipped teacher in it."""
    home = tmp_path_factory.mktemp("bentoml")
    command = [sys.executable, "-m", "pipeline", "package", "--checkpoint", "pipeline/embedded/teacher"]
    environment = {**os.environ, "BENTOML_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return home


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("programs")
def test_real_servers_animate_behind_the_proxies_and_are_gone_afterwards(store, tmp_path, monkeypatch):
    monkeypatch.setenv("BENTOML_HOME", str(store))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    regions = {"a": {"gpus": 1}, "b": {"gpus": 1}}
    fleet = make_fleet(service_s=4.0, regions=regions, latency_ms={"a": {"b": 20}}, metrics={"time_limit_s": 1.5})
    picture = (ROOT / "assets" / "ball.png").read_bytes()

    async def scenario(started):
        async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
            answers = await asyncio.gather(
                *(
                    client.post(
                        f"{started.edges[name]}/animate",
                        files={"image": ("ball.png", picture)},
                        data={"prompt": "a red circle moves right"},
                    )
                    for name in ("a", "a", "b")
                )
            )
        for answer in answers:
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"] == "video/mp4"
            assert answer.headers["x-stillmotion-model"].startswith("animator:")
        assert {answer.headers["x-stillmotion-region"] for answer in answers} <= {"a", "b"}
        world = LocalFleet(started)
        await world.until(lambda: world.status()["regions"]["a"]["gpus_ready"] == 1, what="the loop sees a's server")
        # Its worker too is started again when the server dies.
        world.kill("gpu-a-1")
        await world.until(lambda: world.starts("gpu-a-1") == 2, what="another server")

    options = Options(servers="bentoml", prometheus="no")
    with running(fleet, tmp_path / "none.yaml", tmp_path / "fleet", options) as started:
        asyncio.run(scenario(started))
    assert marked((tmp_path / "fleet").resolve()) == []
