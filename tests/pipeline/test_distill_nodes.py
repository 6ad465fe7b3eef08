"""Two machines that train together: two launchers of torchrun that meet on the loopback, and a folder that both see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.commands.cli import main

from ..ports import free_port
from .trained import SAME, apart

ROOT = Path(__file__).parents[2]
SETTINGS = ("-p", "student_steps", "1", "-p", "updates", "3", "-p", "checkpoint_every", "1")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def command(teacher: Path, out: Path, *more: str) -> list[str]:
    return ["distill", "--teacher", str(teacher), "--out", str(out), "--batch", "1", *SETTINGS, *more]


def launch(teacher: Path, outs: tuple[Path, Path], *more: str) -> list[subprocess.CompletedProcess[str]]:
    """Start a launcher for each of two machines, which know the first one's address and their own rank."""
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        "PET_NNODES": "2",  # torchrun reads its options from these too, and Kubeflow Trainer sets them
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    nodes = [
        subprocess.Popen(
            [*torchrun, "-m", "pipeline", *command(teacher, out, *more), "--json"],
            cwd=ROOT,
            env={**environment, "PET_NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    done = [node.communicate(timeout=500) for node in nodes]
    return [
        subprocess.CompletedProcess(node.args, node.returncode, *streams)
        for node, streams in zip(nodes, done, strict=True)
    ]


def test_two_machines_with_a_shared_folder_learn_what_one_process_learns_and_go_on_there(
    teacher_folder, tmp_path, capsys
):
    shared = tmp_path / "shared"
    for minutes, updates in ("0", 1), ("9", 3):
        first, second = launch(teacher_folder, (shared, shared), "--minutes", minutes)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr[-2000:] + second.stderr[-2000:]
        assert json.loads(first.stdout)["updates"] == updates
        assert second.stdout == ""
    about = json.loads((shared / "checkpoint" / "settings.json").read_text())
    assert about["processes"] == 2

    assert main(command(teacher_folder, tmp_path / "one", "-p", "accumulate", "2")) == 0
    capsys.readouterr()
    found, wanted = (
        load_file(out / "student" / "unet" / "diffusion_pytorch_model.safetensors")
        for out in (shared, tmp_path / "one")
    )
    assert found.keys() == wanted.keys()
    assert apart((found[name] for name in wanted), wanted.values()) < SAME


def test_machines_without_a_shared_folder_stop_at_the_first_checkpoint_and_say_so(teacher_folder, tmp_path):
    first, second = launch(teacher_folder, (tmp_path / "here", tmp_path / "there"))
    assert first.returncode != 0
    assert second.returncode != 0
    said = next(line for line in first.stderr.splitlines() if line.startswith("error: "))
    assert "1 of 2 processes see it; machines that train together need a shared folder" in said
    assert not (tmp_path / "here" / "checkpoint").exists()
