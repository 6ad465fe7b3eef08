"""How a server starts, gives up and stops, seen from outside."""

import signal
import subprocess
import sys
import threading

import httpx
import pytest

from serving.lifecycle import check_deployment

from .conftest import LIMIT_S


def refusal(model, capsys):
    """What a server says of a model before it has a worker; it exits with 1."""
    with pytest.raises(SystemExit) as ended:
        check_deployment(model)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.slow
def test_a_server_without_a_model_says_what_to_do_and_exits_with_1(start_server):
    server = start_server(model="animator:nosuchversion")
    assert server.process.wait(LIMIT_S) == 1
    assert_one_message(server, "animator:nosuchversion", "make demo")


def test_a_model_that_is_not_in_the_store_is_refused_before_a_worker_starts(capsys):
    said = refusal("animator:nosuchversion", capsys)
    assert said.startswith("stillmotion: ")
    assert "animator:nosuchversion" in said
    assert "make demo" in said


def test_a_folder_without_a_description_is_no_model(tmp_path, capsys):
    assert refusal(str(tmp_path), capsys).startswith(f"stillmotion: {tmp_path}: no animator.json")


def test_a_setting_that_is_wrong_is_named_and_the_server_exits_with_1(start_server):
    server = start_server(deadline_s="soon")
    assert server.process.wait(LIMIT_S) == 1
    assert_one_message(server, "STILLMOTION_DEADLINE_S='soon'")


def test_a_model_that_was_changed_ends_the_server_with_1_instead_of_restarting_it_for_ever(start_server, damaged_model):
    server = start_server(model=damaged_model)
    assert server.process.wait(LIMIT_S) == 1
    assert_one_message(server, "vae/config.json", "SHA-256")


def test_on_sigterm_the_animation_in_flight_is_finished_and_others_are_refused(start_server, packaged_model):
    server = start_server(model=packaged_model.tag)
    server.wait_until_ready()
    replies = []
    job = threading.Thread(target=lambda: replies.append(server.animate()))
    job.start()
    server.wait_until(lambda: server.metric("stillmotion_step_seconds_count") > 0, "a step is computed")
    server.process.send_signal(signal.SIGTERM)
    server.wait_until(lambda: server.status_of("/readyz") != 200, "the server is not ready any more")
    try:
        refused, live = server.animate(), server.status_of("/livez")
        assert refused.json()["code"] == "draining"
        assert (refused.status_code, live) in {(503, 200), (503, None)}
    except httpx.TransportError:  # a test that stalls finds the server gone
        pass
    job.join()
    assert replies[0].status_code == 200
    assert server.process.wait(LIMIT_S) == 0


def test_importing_the_service_does_not_load_the_heavy_packages():
    code = "import sys, service; print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def assert_one_message(server, *texts):
    log = server.log.read_text()
    assert log.count("stillmotion: ") == 1, log
    assert "Traceback" not in log
    line = next(line for line in log.splitlines() if "stillmotion: " in line)
    for text in texts:
        assert text in line
