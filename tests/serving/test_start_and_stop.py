"""How a server starts, gives up and stops, seen from outside."""

import signal
import subprocess
import sys
import threading
import time

import pytest


def test_a_server_without_a_model_says_what_to_do_and_exits_with_1(start_server):
    server = start_server(model="animator:nosuchversion")
    assert server.process.wait(60) == 1
    assert_one_message(server, "animator:nosuchversion", "make demo")


def test_a_folder_without_a_description_is_no_model(start_server, tmp_path):
    (tmp_path / "empty").mkdir()
    server = start_server(model=tmp_path / "empty")
    assert server.process.wait(60) == 1
    assert_one_message(server, "no animator.json")


def test_a_setting_that_is_wrong_is_named_and_the_server_exits_with_1(start_server):
    server = start_server(deadline_s="soon")
    assert server.process.wait(60) == 1
    assert_one_message(server, "STILLMOTION_DEADLINE_S='soon'")


def test_a_model_that_was_changed_ends_the_server_with_1_instead_of_restarting_it_for_ever(start_server, damaged_model):
    server = start_server(model=damaged_model)
    assert server.process.wait(120) == 1
    assert_one_message(server, "vae/config.json", "SHA-256")


def test_on_sigterm_the_animation_in_flight_is_finished_and_others_are_refused(start_server, packaged_model):
    server = start_server(model=packaged_model.tag)
    server.wait_until_ready()
    replies = []
    job = threading.Thread(target=lambda: replies.append(server.animate()))
    job.start()
    while server.metric("stillmotion_steps_left") < 5:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    while server.status_of("/readyz") == 200:
        time.sleep(0.01)
    refused = server.animate()
    assert refused.status_code == 503
    assert refused.json()["code"] == "draining"
    assert int(refused.headers["retry-after"]) >= 1
    assert server.status_of("/livez") == 200
    job.join()
    assert replies[0].status_code == 200
    assert server.process.wait(30) == 0


@pytest.mark.parametrize("module", ["torch", "diffusers", "transformers"])
def test_importing_the_service_does_not_load_the_heavy_packages(module):
    code = f"import sys, service; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def assert_one_message(server, *texts):
    log = server.log.read_text()
    assert log.count("stillmotion: ") == 1, log
    assert "Traceback" not in log
    line = next(line for line in log.splitlines() if "stillmotion: " in line)
    for text in texts:
        assert text in line
