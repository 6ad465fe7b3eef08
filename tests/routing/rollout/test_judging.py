"""The judge as a program, and as a page that is asked."""

import json
import subprocess
import sys

import httpx
import pytest

from loadtests.cli import main as loadtests
from routing.cli import main

from ...waiting import HTTP

GOOD = """stillmotion_dispatcher_jobs_total{{version="stable",code="200",by="server"}} {many}
stillmotion_dispatcher_jobs_total{{version="candidate",code="200",by="server"}} {some}
stillmotion_dispatcher_jobs_total{{version="candidate",code="500",by="server"}} {failed}
stillmotion_dispatcher_job_seconds_bucket{{version="stable",le="3"}} {many}
stillmotion_dispatcher_job_seconds_bucket{{version="stable",le="+Inf"}} {many}
stillmotion_dispatcher_job_seconds_bucket{{version="candidate",le="3"}} {some}
stillmotion_dispatcher_job_seconds_bucket{{version="candidate",le="+Inf"}} {some}
"""


@pytest.fixture
def growing(fake_server):
    """A dispatcher's page that has grown each time that it is asked for."""

    def start(some, failed=0):
        asked = iter(range(10_000))
        return fake_server(
            lambda _: (200, GOOD.format(many=9000 * (i := next(asked)), some=some * i, failed=failed * i))
        )

    return start


def run(program, *arguments, capsys):
    status = program(["judge", "--json", *arguments])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("program", "some", "failed", "verdict", "status"), [
    (main, 9000, 0, "pass", 0),
    (main, 2000, 60, "fail", 1),
    (main, 0, 0, "cannot tell", 3),
    (loadtests, 9000, 0, "pass", 0),
    (loadtests, 0, 0, "cannot tell", 3),
])  # fmt: skip
def test_the_verdict_is_the_exit_status(growing, capsys, program, some, failed, verdict, status):
    page = growing(some, failed).url
    found = run(program, "--pages", page, "--slow-s", "3", "--for", "0.3", "--every", "0.05", capsys=capsys)
    assert found[0] == status
    assert found[1]["verdict"] == verdict


def test_a_dispatcher_that_is_away_is_no_pass(capsys):
    status, found = run(main, "--pages", "http://127.0.0.1:1", "--slow-s", "3", "--for", "0.1", capsys=capsys)
    assert (status, found["verdict"]) == (3, "cannot tell")
    assert "no dispatcher's counters can be read" in found["why"]


def test_wrong_use_is_one_line(capsys, tmp_path):
    assert main(["judge", "--pages", "http://127.0.0.1:1"]) == 2
    assert (
        capsys.readouterr().err == "error: --slow-s: is missing; without --fleet nobody says how long a job may take\n"
    )
    assert main(["judge", "--fleet", str(tmp_path / "none.yaml")]) == 2


def test_a_page_begins_anew_with_each_candidate(growing, free_port, eventually):
    address = f"127.0.0.1:{free_port}"
    command = [sys.executable, "-m", "routing", "judge", "--listen", address, "--slow-s", "3"]
    process = subprocess.Popen([*command, "--pages", growing(9000).url])
    try:

        def ask(path):
            try:
                return HTTP.get(f"http://{address}{path}")
            except httpx.HTTPError:
                return None

        eventually(lambda: ask("/livez"))
        assert ask("/verdict?candidate=a").json()["verdict"] == "cannot tell"
        assert ask("/verdict?candidate=a").json()["verdict"] == "pass"
        assert ask("/verdict?candidate=b").json()["why"] == "the candidate has had no job"
        assert ask("/verdict").status_code == 404
    finally:
        process.kill()
        process.wait()
