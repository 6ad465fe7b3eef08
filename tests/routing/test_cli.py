import json
import subprocess
import sys
from pathlib import Path

import pytest

from routing.cli import main


@pytest.fixture
def plan(examples):
    """The arguments of a plain `plan` of the example; later ones win."""
    given = ["plan", "--fleet", str(examples / "fleet.yaml"), "--load", str(examples / "load.json")]
    return lambda *more: main([*given, *more])


def test_help_comes_without_heavy_imports():
    code = (
        "import sys; from routing.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'numpy', 'scipy', 'pydantic', 'yaml', 'pipeline'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "  plan " in done.stdout


def test_plan_prints_one_document_and_writes_the_same(plan, tmp_path, capsys):
    path = tmp_path / "table.json"
    assert plan("--json", "--out", str(path)) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == json.loads(path.read_text())
    assert json.loads(out).keys() == {"epoch", "version", "generated_at", "shares", "moves", "unserved_rps"}


def test_plan_is_readable_without_json(plan, capsys):
    assert plan() == 0
    out = capsys.readouterr().out
    assert "us-east is" in out
    assert "all is served" in out


def test_a_bad_file_exits_with_2_and_one_line(plan, tmp_path, capsys):
    bad = tmp_path / "fleet.yaml"
    bad.write_text("regions: {a: {gpus: -1}}\n")
    assert plan("--fleet", str(bad)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {bad}: regions.a.gpus: should be greater than or equal to 0")
    assert captured.err.count("\n") == 1


def test_a_table_that_cannot_be_written_exits_with_1(plan, tmp_path, capsys):
    assert plan("--out", str(tmp_path / "none" / "table.json"), "--json") == 1
    assert capsys.readouterr().out == ""


def start(examples, stdout, shell_tail=""):
    command = f"{sys.executable} -m routing plan --json --fleet {examples}/fleet.yaml --load {examples}/load.json"
    return subprocess.run(
        ["sh", "-c", f"{command} {shell_tail}; exit $?"],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=280,
        check=False,
        cwd=examples.parents[1],
    )


def test_a_reader_that_has_had_enough_is_no_error(examples):
    done = start(examples, subprocess.PIPE, "| head -n 1")
    assert (done.stdout, done.stderr) == ("{\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_result_that_cannot_be_written_exits_with_1(examples):
    with Path("/dev/full").open("w") as full:
        done = start(examples, full)
    assert done.returncode == 1
    assert done.stderr == "error: the result cannot be written (No space left on device)\n"


def test_wrong_use_exits_with_2():
    for arguments in ([], ["plan"], ["fly"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
