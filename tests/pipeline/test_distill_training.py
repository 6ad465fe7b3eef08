"""The training loop of distillation. Run as a program, this file is processes that train, and report to the tests."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.dataclasses import get_module_class_from_name
from diffusers import I2VGenXLUNet

from pipeline import ImageAnimationPipeline
from pipeline.commands.cli import main
from pipeline.distill.data import Examples, GeneratedSource
from pipeline.distill.passes import Networks, networks_of
from pipeline.distill.trainer import DistillationError, Distiller, DistillSettings
from pipeline.errors import StillmotionError

from ..ports import free_port

ROOT = Path(__file__).parents[2]
SETTINGS = DistillSettings(student_steps=2, updates=4, warmup=2, checkpoint_every=2)


class Source:
    """Generated clips, some of them damaged: numbers of `damaged` are not numbers, and of `refused` an error."""

    has_clips = True

    def __init__(self, damaged: tuple[int, ...] = (), refused: tuple[int, ...] = (), batch: int = 2) -> None:
        self.damaged, self.refused, self.inner, self.batch = damaged, refused, GeneratedSource(32, 3, batch), batch

    def __getitem__(self, index: int) -> Examples:
        if index in self.refused:
            raise StillmotionError(f"number {index} is refused")
        examples = self.inner[index]
        if index in self.damaged:
            examples.clips = examples.clips * float("nan")
        return examples


@pytest.fixture(scope="module")
def teacher(i2vgen_parts) -> ImageAnimationPipeline:
    """Of 4 steps, and of one level: most time goes into the number of layers."""
    torch.manual_seed(0)
    unet = I2VGenXLUNet(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D",),
        up_block_types=("CrossAttnUpBlock3D",),
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    return whole_teacher({**i2vgen_parts, "unet": unet})


def whole_teacher(parts: dict[str, Any]) -> ImageAnimationPipeline:
    pipe = ImageAnimationPipeline(
        **parts,
        image_latents_fill="repeat",
        num_inference_steps=4,
        guidance_scale=2.0,
        image_guidance_scale=1.5,
        num_frames=3,
        fps=8,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def state(distiller: Distiller) -> dict[str, Any]:
    """All that training has changed."""
    moments = [part for entry in distiller.optimizer.state.values() for part in entry.values()]
    return {
        "losses": distiller.losses,
        "tensors": [*distiller.trained, *distiller.averaged.shadow_params, *moments],
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    from .trained import SAME, apart  # this file is a program too, which has no package

    losses = one["losses"] == pytest.approx(other["losses"], rel=1e-4)
    return losses and apart(one["tensors"], other["tensors"]) < SAME


def every_weight(pipe: ImageAnimationPipeline) -> dict[str, Any]:
    networks = networks_of(pipe).items()
    return {f"{part}.{name}": one for part, network in networks for name, one in network.state_dict().items()}


def farthest(one: dict[str, Any], other: dict[str, Any]) -> float:
    from .trained import apart

    assert one.keys() == other.keys()
    return apart(one.values(), (other[name] for name in one))


# ------------------------------------------------------------------ what the processes do


def command(teacher: Path, out: Path, *more: str) -> list[str]:
    settings = ("-p", "student_steps", "1", "-p", "updates", "2", "-p", "mixed_precision", "no")
    return ["distill", "--teacher", str(teacher), "--out", str(out), "--batch", "1", *settings, *more]


def work(kind: str, rank: int, port: int, folder: Path, pipe: ImageAnimationPipeline) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_PORT=str(port))
    settings, accelerator = replace(SETTINGS, updates=3), None
    if kind.startswith("fsdp"):
        settings, accelerator = replace(settings, student_steps=4), _sharding()
    if "wan" in kind or "two" in kind:
        settings = replace(settings, student_steps=3, lora_rank=2 if kind.endswith("lora") else 0)
    source = Source(batch=1) if pipe.family.name == "i2vgen-xl" else GeneratedSource(32, 9, 1, seed=1)
    distiller = Distiller(pipe, source, settings, folder / kind, accelerator)
    student = distiller.train()
    torch.save(every_weight(student), folder / f"{kind}-{rank}.pt")
    report: dict[str, Any] = {"losses": distiller.losses, "resumed": distiller.resume(), "updates": distiller.updates}
    if kind == "ddp":
        damaged = Source(damaged=(3,), batch=1)  # number 3 is of process 1
        again = Distiller(pipe, damaged, replace(settings, trajectory="forward"), folder / "damaged")
        with contextlib.suppress(DistillationError):
            again.train()
        report["damaged"] = [again.updates, again.checkpoints.kept]
        told, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(said):
            report["status"] = main([*command(folder / "tiny", folder / "out"), "--json"])
        report["told"], report["said"] = told.getvalue(), said.getvalue()
    (folder / f"{kind}-{rank}.json").write_text(json.dumps(report))


def _sharding() -> Accelerator:
    """FSDP on processors, where accelerate offers DDP alone."""
    config = load_config_from_file(str(ROOT / "docs/accelerate/fsdp.yaml")).fsdp_config
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=config["fsdp_version"],
        auto_wrap_policy=config["fsdp_auto_wrap_policy"],
        state_dict_type=config["fsdp_state_dict_type"],
        cpu_ram_efficient_loading=config["fsdp_cpu_ram_efficient_loading"],
    )
    accelerator = Accelerator(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    return accelerator


def killed(folder: Path, pipe: ImageAnimationPipeline) -> None:
    def kill(done: int, _total: int, _loss: float) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    Distiller(pipe, Source(), SETTINGS, folder / "killed").train(kill)


def run_processes(kind: str, folder: Path) -> int:
    """Fork them from a program that has imported everything, which takes longer than all their work."""
    torch.set_num_threads(1)
    pipe = ImageAnimationPipeline.from_pretrained(folder / "tiny")
    pipe.set_progress_bar_config(disable=True)
    port = free_port()
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=work, args=(kind, rank, port, folder, pipe)) for rank in range(2)]
    if kind == "ddp":
        dies = context.Process(target=killed, args=(folder, pipe))
        dies.start()
        dies.join()
        assert dies.exitcode == -signal.SIGKILL
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    return max(abs(job.exitcode or 0) for job in jobs)


def processes(kind: str, folder: Path, pipe: ImageAnimationPipeline) -> Path:
    pipe.save_pretrained(folder / "tiny")
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": loopback,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.test_distill_training", kind, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def two_processes(teacher, tmp_path_factory) -> Path:
    return processes("ddp", tmp_path_factory.mktemp("ddp"), teacher)


# ------------------------------------------------------------------ several processes


def reports(kind: str, folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{kind}-{rank}.json").read_text()) for rank in range(2)]


def students(kind: str, folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{kind}-{rank}.pt") for rank in range(2)]


def test_two_processes_learn_what_one_learns_from_both_batches(two_processes, teacher, tmp_path):
    one = Distiller(teacher, Source(batch=1), replace(SETTINGS, updates=3, accumulate=2), tmp_path)
    student = every_weight(one.train())
    first, second = students("ddp", two_processes)
    assert farthest(first, second) == 0
    assert farthest(first, student) < 2e-4
    for report in reports("ddp", two_processes):
        assert report["losses"] == pytest.approx(one.losses, rel=1e-4)
        assert (report["resumed"], report["updates"]) == (True, 3)


def test_all_processes_stop_where_one_has_no_number(two_processes):
    for report in reports("ddp", two_processes):
        assert report["damaged"] == [1, f"no checkpoint is kept in {two_processes / 'damaged'}"]


def test_of_several_processes_one_writes_and_tells(two_processes):
    first, second = reports("ddp", two_processes)
    assert (first["status"], second["status"]) == (0, 0)
    assert json.loads(first["told"])["updates"] == 2
    assert (second["told"], second["said"]) == ("", "")
    assert (two_processes / "out" / "student" / "model_index.json").is_file()


@pytest.mark.slow
def test_weights_spread_by_fsdp_learn_what_whole_ones_learn(i2vgen_parts, tmp_path):
    teacher = whole_teacher(i2vgen_parts)
    settings = replace(SETTINGS, student_steps=4, updates=3, accumulate=2)
    student = every_weight(Distiller(teacher, Source(batch=1), settings, tmp_path / "one").train())
    folder = processes("fsdp", tmp_path, teacher)
    assert [report["updates"] for report in reports("fsdp", folder)] == [3, 3]
    for found in students("fsdp", folder):
        assert farthest(found, student) < 2e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp-wan", "fsdp-wan-lora", "ddp-wan", "ddp-wan-lora", "fsdp-two", "fsdp-two-lora"])
def test_two_processes_with_a_dit_learn_what_one_learns_also_on_weights_that_teacher_and_student_share(kind, tmp_path):
    from .test_distill_flows import teacher_of  # this file is a program too, which has no package

    name = "wan-2.2-a14b" if "two" in kind else "wan-2.2-ti2v"
    teacher = teacher_of(name, tmp_path / "made")
    settings = replace(SETTINGS, student_steps=3, updates=3, accumulate=2, lora_rank=2 if kind.endswith("lora") else 0)
    source = GeneratedSource(32, 9, 1, seed=1)
    student = every_weight(Distiller(teacher, source, settings, tmp_path / "one").train())
    folder = processes(kind, tmp_path, teacher_of(name, tmp_path / "again"))
    assert [report["updates"] for report in reports(kind, folder)] == [3, 3]
    assert [report["resumed"] for report in reports(kind, folder)] == [True, True]
    for found in students(kind, folder):
        assert farthest(found, student) < 2e-4


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_accelerate_reads_the_configurations_that_are_shipped(name, i2vgen):
    config = load_config_from_file(str(ROOT / f"docs/accelerate/{name}.yaml"))
    assert config.distributed_type == {"ddp": DistributedType.MULTI_GPU, "fsdp": DistributedType.FSDP}[name]
    assert "fsdp_transformer_layer_cls_to_wrap" not in config.fsdp_config
    networks = Networks(i2vgen, networks_of(i2vgen))
    assert {"CrossAttnDownBlock3D", "UNetMidBlock3DCrossAttn", "UpBlock3D"} < set(networks._no_split_modules)
    for block in networks._no_split_modules:
        assert get_module_class_from_name(networks, block) is not None


@pytest.mark.slow
def test_accelerate_starts_the_command(teacher_folder, tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "docs/accelerate/ddp.yaml")]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "pipeline", *command(teacher_folder, tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"student {tmp_path / 'student'}\n"
    assert json.loads((tmp_path / "checkpoint" / "settings.json").read_text())["processes"] == 2


# ------------------------------------------------------------------ going on


@pytest.fixture(scope="module")
def unbroken(teacher, tmp_path_factory) -> dict[str, Any]:
    distiller = Distiller(teacher, Source(), SETTINGS, tmp_path_factory.mktemp("unbroken"))
    distiller.train()
    return state(distiller)


def test_a_run_that_was_killed_goes_on_bit_by_bit(two_processes, teacher, unbroken):
    distiller = Distiller(teacher, Source(), SETTINGS, two_processes / "killed")
    assert distiller.resume()
    assert distiller.updates == 2
    distiller.train()
    assert same(state(distiller), unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_the_update_and_saves_it(teacher, unbroken, tmp_path, number, request):
    def interrupt(done, _total, _loss):
        if done == 3:
            signal.raise_signal(number)

    if number == signal.SIGINT:  # ignored where the tests were started in the background, and put back as it was
        request.addfinalizer(partial(signal.signal, number, signal.getsignal(number)))
        signal.signal(number, signal.default_int_handler)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        Distiller(teacher, Source(), SETTINGS, tmp_path).train(interrupt)
    assert signal.getsignal(number) == before
    distiller = Distiller(teacher, Source(), SETTINGS, tmp_path)
    assert distiller.resume()
    assert distiller.updates == 3
    distiller.train()
    assert same(state(distiller), unbroken)


class Stop(Exception):
    pass


def test_with_accumulated_batches_a_run_goes_on_bit_by_bit(teacher, tmp_path):
    settings = replace(SETTINGS, accumulate=2, updates=3, checkpoint_every=1, trajectory="forward")
    whole = Distiller(teacher, Source(), settings, tmp_path / "whole")
    whole.train()

    def stop(done, _total, _loss):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        Distiller(teacher, Source(), settings, tmp_path / "broken").train(stop)
    torch.manual_seed(1234)  # the global generator has no say
    distiller = Distiller(teacher, Source(), settings, tmp_path / "broken")
    distiller.train()
    assert same(state(distiller), state(whole))


def test_the_loss_of_an_update_is_the_mean_over_its_batches(teacher, tmp_path):
    distiller = Distiller(teacher, Source(), replace(SETTINGS, accumulate=2), tmp_path)
    source, before = Source(), [p.clone() for p in distiller.trained]
    with torch.no_grad():
        each = [float(distiller.loss(source[number], number)) for number in (0, 1)]
    assert not distiller.update(source[0], 0)
    assert all(torch.equal(a, b) for a, b in zip(before, distiller.trained, strict=True))
    assert (distiller.losses, distiller.averaged.optimization_step) == ([], 0)
    assert distiller.update(source[1], 1)
    assert distiller.losses == [pytest.approx(sum(each) / 2)]
    assert distiller.averaged.optimization_step == 1


def test_a_finished_run_gives_its_student_again(teacher, tmp_path):
    first = Distiller(teacher, Source(), replace(SETTINGS, updates=2), tmp_path).train()
    written = (tmp_path / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    second = Distiller(teacher, Source(refused=(0, 1, 2)), replace(SETTINGS, updates=2), tmp_path).train()
    assert farthest(first.unet.state_dict(), second.unet.state_dict()) == 0
    assert (tmp_path / "checkpoint" / "model.safetensors").stat().st_mtime_ns == written


def test_a_run_that_is_out_of_time_goes_on_later(teacher, unbroken, tmp_path):
    distiller = Distiller(teacher, Source(), SETTINGS, tmp_path)
    distiller.train(minutes=0)
    assert distiller.updates == 1
    distiller.train()
    assert same(state(distiller), unbroken)


@pytest.mark.parametrize(
    ("change", "words"), [({"lora_rank": 2}, "lora_rank: 0, now 2"), ({"trajectory": "forward"}, "backward, now")]
)
def test_other_settings_are_refused_and_named(teacher, tmp_path, change, words):
    Distiller(teacher, Source(), replace(SETTINGS, updates=1), tmp_path).train()
    distiller = Distiller(teacher, Source(), replace(SETTINGS, updates=1, **change), tmp_path)
    with pytest.raises(DistillationError, match=words):
        distiller.train()


def test_a_kill_between_two_renames_loses_nothing(teacher, tmp_path):
    Distiller(teacher, Source(), replace(SETTINGS, updates=1), tmp_path).train()
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    (tmp_path / "checkpoint.partial").mkdir()
    assert Distiller(teacher, Source(), replace(SETTINGS, updates=1), tmp_path).resume()


def test_a_damaged_checkpoint_is_named(teacher, tmp_path):
    Distiller(teacher, Source(), replace(SETTINGS, updates=1), tmp_path).train()
    (tmp_path / "checkpoint" / "optimizer.bin").write_bytes(b"half")
    distiller = Distiller(teacher, Source(), replace(SETTINGS, updates=1), tmp_path)
    with pytest.raises(DistillationError, match=r"cannot be read .*remove it to begin again"):
        distiller.resume()


if __name__ == "__main__":
    sys.exit(run_processes(sys.argv[1], Path(sys.argv[2])))
