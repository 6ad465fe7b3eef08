"""Rollouts on a running fleet: who is given which model, what is judged, and that users notice nothing."""

import asyncio
import json
import signal
import subprocess
import sys

import pytest
import yaml

from laboratory.local.layout import CONTROL
from laboratory.local.records import read_wanted
from laboratory.local.rollouts import FOLDER, end, start, status
from laboratory.local.versions import model_of
from routing.errors import InputError
from routing.rollout.state import State

SETTINGS = {
    "steps": [{"share": 0.25, "pause_s": 1}, {"share": 0.5, "pause_s": 1}],
    "limits": {"failures": 0.2, "objective": 0.3, "slow": 0.9, "refusals": 0.3, "rejections": 0.3},
    "look_s": 0.5,
    "ready_s": 60,
    "decide_s": 120,
}


@pytest.fixture
def settings(tmp_path):
    """A rollout that needs a few dozen jobs."""
    path = tmp_path / "rollout.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


def models(fleet):
    return [model_of(one, "") for one in read_wanted(fleet.folder) if one.kind == "gpu"]


def entries(fleet):
    lines = (fleet.folder / CONTROL / "decisions.jsonl").read_text().splitlines()
    return [entry["text"] for entry in map(json.loads, lines) if entry["event"] == "rollout"]


def test_a_good_model_is_promoted_and_a_black_one_aborted_while_users_notice_nothing(shared_fleet, settings):
    async def scenario(fleet):
        async with fleet.under(0.4) as outcomes:
            found = await asyncio.to_thread(start, fleet.folder, "dark", settings, '{"clip": "black"}')
            assert (found["phase"], found["step"]) == ("aborted", 1)
            assert "the candidate's clip is blank and still" in found["why"]
            assert found["judgement"]["findings"][0]["candidate"]["jobs"] == 0  # no user has met it
            assert set(models(fleet)) == {"stand-in"}
            found = await asyncio.to_thread(start, fleet.folder, "8-steps", settings)
            assert found["phase"] == "promoted"
            assert found["judgement"]["models"]["candidate"] == ["stand-in:8-steps"]
        assert set(models(fleet)) == {"stand-in:8-steps"}
        assert [one for one in outcomes if not one.ok] == []
        after = await fleet.poisson(0.4, 1.0, seed=2)
        assert all(one.ok for one in after)
        fleet.check_conserved(lost=20)  # those of probes, which are no users'
        texts = entries(fleet)
        assert texts[0].startswith("taking: step 1 of 2: 3 servers get stand-in:dark (")
        assert texts[-1].startswith("promoted: failures: candidate 0 of ")
        assert status(fleet.folder)["phase"] == "promoted"
        with pytest.raises(InputError, match="--model: the servers have 8-steps already"):
            start(fleet.folder, "8-steps", settings)
        with pytest.raises(InputError, match="no rollout is under way"):
            end(fleet.folder, "abort")

    asyncio.run(scenario(shared_fleet))


@pytest.mark.slow
def test_clips_that_only_copies_of_users_requests_show_to_be_black_end_it(local_fleet, settings):
    async def scenario(fleet):
        async with fleet.under(0.3) as outcomes:
            task = asyncio.create_task(asyncio.to_thread(start, fleet.folder, "8-steps", settings))
            judging = "a step that is judged"
            await fleet.until(lambda: State.read(fleet.folder / FOLDER).phase == "judging", what=judging)
            new = [one for one in read_wanted(fleet.folder) if model_of(one, "") == "stand-in:8-steps"]
            await fleet.faults([f"http://127.0.0.1:{one.ports[0]}" for one in new], clip="black")
            found = await task
        assert (found["phase"], found["step"]) == ("aborted", 1)
        assert found["why"].startswith("clips: candidate ")
        assert "the candidate's clip is blank and still" in found["why"]
        assert entries(fleet)[-1] == f"aborted: {found['why']}"
        assert [one for one in outcomes if not one.ok] == []

    copies = {"data_plane": {"limits": {"edge_threads": 1}, "access_log": False, "shadow": {"share": 1.0}}}
    steps = {**SETTINGS, "steps": [{"share": 0.25, "pause_s": 60}]}
    settings.write_text(yaml.safe_dump(steps))
    with local_fleet(**copies) as fleet:
        asyncio.run(scenario(fleet))


def test_a_rollout_that_was_killed_is_ended_by_an_operator(shared_fleet, settings):
    fleet, (stable,) = shared_fleet, set(models(shared_fleet))
    command = [sys.executable, "-m", "routing", "rollout", "start", "--dir", str(fleet.folder)]
    process = subprocess.Popen([*command, "--model", "next", "--file", str(settings)])
    try:
        asyncio.run(fleet.until(lambda: models(fleet).count("stand-in:next") == 3, what="the first step"))
        asyncio.run(fleet.until(lambda: status(fleet.folder)["phase"] == "judging", what="a step that is judged"))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(InputError, match=r"an earlier rollout, of stand-in:next, is not over"):
        start(fleet.folder, "other", settings)
    assert end(fleet.folder, "abort")["phase"] == "aborted"
    assert set(models(fleet)) == {stable}
    assert asyncio.run(fleet.poisson(0.4, 1.0, seed=3))[0].ok


def test_what_cannot_be_rolled_out_is_named(shared_fleet, tmp_path):
    with pytest.raises(InputError, match="no fleet runs in"):
        start(tmp_path, "new", None)
    with pytest.raises(InputError, match="there was no rollout in"):
        status(tmp_path)
    with pytest.raises(InputError, match="slowness: should be greater than 0"):
        start(shared_fleet.folder, "new", None, '{"slowness": 0}')
    (tmp_path / "rollout.yaml").write_text("limits: {slowness: 1}")
    with pytest.raises(InputError, match=r"rollout.yaml: limits.slowness: unknown key"):
        start(shared_fleet.folder, "new", tmp_path / "rollout.yaml")
    assert not (shared_fleet.folder / FOLDER / "order.json").exists()
