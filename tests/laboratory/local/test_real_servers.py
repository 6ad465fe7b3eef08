"""A fleet of real `bentoml serve` processes, with the shipped teacher."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from laboratory.local.launch import Options, running
from laboratory.local.processes import marked
from laboratory.local.records import read_wanted
from laboratory.local.rollouts import start
from laboratory.local.versions import model_of

from .conftest import LocalFleet, make_fleet

ROOT = Path(__file__).resolve().parents[3]


def package(home, checkpoint):
    """Put a shipped model into a store, and return its tag."""
    command = [sys.executable, "-m", "pipeline", "package", "--json", "--checkpoint", f"pipeline/embedded/{checkpoint}"]
    environment = {**os.environ, "BENTOML_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return json.loads(done.stdout)["tag"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with the shipped teacher in it."""
    home = tmp_path_factory.mktemp("bentoml")
    package(home, "teacher")
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


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("programs")
def test_a_rollout_gives_real_servers_another_version_while_users_are_served(tmp_path, monkeypatch):
    """The shipped student twice: two versions of the store, of which the second is as good as the first."""
    home = tmp_path / "bentoml"
    stable, candidate = package(home, "student"), package(home, "student")
    monkeypatch.setenv("BENTOML_HOME", str(home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = tmp_path / "rollout.yaml"
    limits = {"failures": 0.4, "objective": 0.9, "slow": 0.99, "refusals": 0.6, "rejections": 0.4}
    content = {"steps": [{"share": 0.5, "pause_s": 1}], "limits": limits, "ready_s": 400, "decide_s": 600, "look_s": 1}
    settings.write_text(yaml.safe_dump(content))
    picture = (ROOT / "assets" / "ball.png").read_bytes()
    fleet = make_fleet(service_s=4.0, regions={"a": {"gpus": 2}}, latency_ms={}, metrics={"time_limit_s": 1.5})

    async def scenario(started):
        answers, over = [], asyncio.Event()

        async def user():
            async with httpx.AsyncClient(timeout=200, trust_env=False) as client:
                while not over.is_set():
                    files, data = {"image": ("ball.png", picture)}, {"prompt": "a red circle moves right", "seed": "7"}
                    answers.append(await client.post(f"{started.edges['a']}/animate", files=files, data=data))

        users = [asyncio.create_task(user()) for _ in range(2)]
        found = await asyncio.to_thread(start, started.folder, candidate, settings)
        over.set()
        await asyncio.gather(*users)
        assert found["phase"] == "promoted", found["why"]
        assert found["judgement"]["models"] == {"stable": [stable], "candidate": [candidate]}
        assert {answer.status_code for answer in answers} == {200}
        versions = {(one.headers["x-stillmotion-version"], one.headers["x-stillmotion-model"]) for one in answers}
        assert {("stable", stable), ("candidate", candidate)} <= versions

    options = Options(servers="bentoml", prometheus="no", model=stable)
    with running(fleet, tmp_path / "none.yaml", tmp_path / "fleet", options) as started:
        asyncio.run(scenario(started))
        assert {model_of(one, "") for one in read_wanted(started.folder) if one.kind == "gpu"} == {candidate}
    assert marked((tmp_path / "fleet").resolve()) == []
