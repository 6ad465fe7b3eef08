"""A pass spread over processes. Run as a program, this file is those processes; they report to the tests."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from pipeline import ImageAnimationPipeline
from pipeline.commands import distributed
from pipeline.errors import StillmotionError
from pipeline.model.families import Cond
from pipeline.model.sampling import PlainDenoiser, Predict
from pipeline.optimise.base import NotApplicable
from pipeline.optimise.prepared import prepare_once
from pipeline.optimise.ranks import Ranks, RanksDiffer, shares
from pipeline.optimise.sequence_parallel import (
    FrameSplit,
    SynchronisedGroupNorm,
    exchange_around,
    split_frames,
    temporal_layers,
)

from ..ports import free_port

ROOT = Path(__file__).parents[2]
FAMILIES = ("i2vgen", "pia")


@dataclass(frozen=True)
class Case:
    """A clip: frames beyond those of one a process, side in pixels (four times the latents'), and how it is made."""

    more_frames: int
    side: int
    image_guidance_scale: float | None
    steps: int = 1


CASES = {
    "even": Case(0, 16, None),
    "uneven frames and places, three branches": Case(3, 12, 1.5, steps=2),
    "one place at the deepest level": Case(1, 8, None),
}


# ------------------------------------------------------------------ what each process does


class Recorder:
    """A plain denoiser that keeps what it was started with, and its first input and output."""

    def __init__(self, pipe: ImageAnimationPipeline) -> None:
        self.pipe, self.calls = pipe, []

    def start(self, cond: Cond) -> Predict:
        self.cond = cond
        plain = PlainDenoiser(self.pipe).start(cond)

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            self.calls.append((latents, timestep, plain(latents, timestep)))
            return self.calls[-1][-1]

        return predict


def animate(pipe: ImageAnimationPipeline, frames: int, case: Case, seed: int = 0, global_seed: int = 0) -> Tensor:
    torch.manual_seed(global_seed)  # of the posterior of I2VGen-XL
    picture = Image.linear_gradient("L").resize((24, 20)).convert("RGB")
    return pipe(
        picture,
        "a red ball",
        num_frames=frames,
        height=case.side,
        width=case.side,
        num_inference_steps=case.steps,
        guidance_scale=3.0,
        image_guidance_scale=case.image_guidance_scale,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).frames


def difference(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


def message(action: Any) -> str:
    try:
        action()
    except (NotApplicable, RanksDiffer) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing raised"


def traces(unet: nn.Module) -> list[Any]:
    """What an optimisation could leave behind."""
    return [
        (
            name,
            id(module),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            id(getattr(module, "processor", 0)),
        )
        for name, module in unet.named_modules()
    ]


def study(pipe: ImageAnimationPipeline, world: int) -> dict[str, Any]:
    report: dict[str, Any] = {"cases": {}}
    plain, before, keys = pipe.denoiser, traces(pipe.unet), list(pipe.unet.state_dict())
    for name, case in CASES.items():
        frames = world + case.more_frames
        recorder = pipe.denoiser = Recorder(pipe)
        clip = animate(pipe, frames, case)
        pipe.denoiser = plain
        latents, timestep, predicted = recorder.calls[0]
        change = split_frames(pipe)
        spread = animate(pipe, frames, case)
        with torch.no_grad():
            spread_pass = pipe.denoiser.start(recorder.cond)(latents, timestep)
            alone = PlainDenoiser(pipe).start(recorder.cond)(latents, timestep)
        same_keys = list(pipe.unet.state_dict()) == keys
        change.undo()
        report["cases"][name] = {
            "pass": difference(spread_pass, predicted),
            "clip": difference(spread, clip),
            "called directly": difference(alone, predicted),
            "digest": hashlib.sha256(spread.numpy().tobytes()).hexdigest(),
            "same keys": same_keys,
            "undone": torch.equal(animate(pipe, frames, case), clip) and traces(pipe.unet) == before,
        }
    return report


def refusals(pipe: ImageAnimationPipeline, rank: int, world: int) -> dict[str, str]:
    case = CASES["even"]
    with torch.no_grad():
        first = next(pipe.unet.parameters())
        first += rank
        weights = message(lambda: split_frames(pipe))
        first -= rank
    change = split_frames(pipe)
    found = {
        "weights": weights,
        "twice": message(lambda: split_frames(pipe)),
        "few frames": message(lambda: animate(pipe, world - 1, case)),
        "noise": message(lambda: animate(pipe, world, case, seed=rank)),
        "image": message(lambda: animate(pipe, world, case, global_seed=rank)),
        "frames": message(lambda: animate(pipe, world + rank, case)),
    }
    change.undo()
    return found


def norm_difference(rank: int, world: int) -> float:
    """Of a group norm over values far from zero, shares unequal, from the same in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 3, 4 * world + 1, 1, generator=generator) + 1000
    norm = nn.GroupNorm(4, 8)
    nn.init.normal_(norm.weight, generator=generator)
    split = FrameSplit(Ranks())
    split.positions = shares(x.shape[3], world)
    expected = nn.functional.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double())
    with torch.no_grad():
        mine = SynchronisedGroupNorm(norm, split)(x.split(split.positions, dim=3)[rank])
    return difference(mine, expected.split(split.positions, dim=3)[rank])


def work(rank: int, world: int, folder: Path, pipes: dict[str, ImageAnimationPipeline]) -> None:
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    report: dict[str, Any] = {family: study(pipe, world) for family, pipe in pipes.items()}
    report["refusals"] = refusals(pipes["i2vgen"], rank, world)
    report["norm"] = norm_difference(rank, world)
    (folder / f"{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


def run_processes(folder: Path, world: int) -> int:
    """Fork them from a program that has imported everything, which takes longer than all their work."""
    torch.set_num_threads(1)
    pipes = {family: ImageAnimationPipeline.from_pretrained(folder / family) for family in FAMILIES}
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, world, folder, pipes)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


# ------------------------------------------------------------------ the tests


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def reports(request, i2vgen_parts, pia_parts, tmp_path_factory) -> list[dict[str, Any]]:
    """What each of 2 or 4 processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    for family, parts in zip(FAMILIES, (i2vgen_parts, pia_parts), strict=True):
        ImageAnimationPipeline(**parts).save_pretrained(folder / family)
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback}
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.test_sequence_parallel", str(folder), str(request.param)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


def test_a_spread_pass_and_clip_equal_those_of_one_process(reports):
    for report in reports:
        for family in FAMILIES:
            for name, found in report[family]["cases"].items():
                assert found["pass"] < 1e-5, (family, name)
                assert found["clip"] < 1e-5, (family, name)


def test_all_ranks_return_the_same_clip_bit_by_bit(reports):
    for family in FAMILIES:
        for name in CASES:
            assert len({report[family]["cases"][name]["digest"] for report in reports}) == 1


def test_outside_a_spread_pass_the_unet_works_as_ever(reports):
    for report in reports:
        for family in FAMILIES:
            for found in report[family]["cases"].values():
                assert found["called directly"] < 1e-5
                assert found["same keys"]


def test_undo_puts_everything_back_bit_by_bit(reports):
    assert all(found["undone"] for r in reports for family in FAMILIES for found in r[family]["cases"].values())


def test_fewer_frames_than_processes_are_refused_with_the_numbers(reports):
    world = len(reports)
    for report in reports:
        assert report["refusals"]["few frames"] == (
            f"NotApplicable: sequence parallel: {world - 1} frames cannot be spread over {world} processes; "
            f"ask for {world} frames or more, or start fewer processes"
        )


@pytest.mark.parametrize(
    ("what", "named"), [("noise", "latents: "), ("image", "image_latents: "), ("weights", "weights of I2VGenXLUNet: ")]
)
def test_other_values_on_a_rank_are_named_on_all_of_them(reports, what, named):
    for report in reports:
        assert report["refusals"][what].startswith(f"RanksDiffer: {named}process 1 has other values than process 0")


def test_another_number_of_frames_on_a_rank_is_noticed(reports):
    for report in reports:
        assert report["refusals"]["frames"].startswith("RanksDiffer: image_latents: shape or type is not the same")


def test_it_is_not_put_in_place_twice(reports):
    assert all(r["refusals"]["twice"] == "NotApplicable: sequence parallel: it is in place already" for r in reports)


def test_the_synchronised_norm_keeps_its_digits_far_from_zero(reports):
    # float32 resolves 1000 to 6e-5 and its square to 0.06, which sums of squares would lose of a variance of 1.
    assert all(report["norm"] < 1e-3 for report in reports)


@given(st.integers(0, 300), st.integers(1, 16))
def test_shares_add_up_and_differ_by_one_at_most(total, ranks):
    found = shares(total, ranks)
    assert sum(found) == total
    assert len(found) == ranks
    assert max(found) - min(found) <= 1


def test_without_a_process_group_it_is_refused_and_changes_nothing(pipe):
    before = traces(pipe.unet)
    with pytest.raises(NotApplicable, match="not initialised"):
        split_frames(pipe)
    assert traces(pipe.unet) == before


@pytest.fixture
def torchrun_of_one(monkeypatch):
    """The environment in which torchrun starts a single process."""
    port = free_port()
    variables = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("torchrun_of_one")
def test_a_program_in_the_step_modules_place_is_refused(i2vgen):
    with distributed.init_from_environment("cpu") as process:
        assert (process.rank, process.world_size, process.device) == (0, 1, torch.device("cpu"))
        change = prepare_once(i2vgen)
        i2vgen.denoiser.run = lambda latents, *_: latents
        with pytest.raises(NotApplicable, match="compiled or packaged"):
            split_frames(i2vgen)
        change.undo()
    assert not dist.is_initialized()


@pytest.mark.usefixtures("torchrun_of_one")
def test_the_command_writes_the_clip_and_says_what_is_wrong_on_one_line(teacher_folder, tmp_path, capsys):
    picture, out = tmp_path / "picture.png", tmp_path / "clip.gif"
    Image.linear_gradient("L").save(picture)
    given_always = ["--prompt", "a red ball", "--model", str(teacher_folder), "--seed", "1", "--device", "cpu"]
    assert distributed.main(["--image", str(picture), "--out", str(out), *given_always]) == 0
    assert out.read_bytes().startswith(b"GIF8")
    assert capsys.readouterr().out == f"{out}\n"

    assert distributed.main(["--image", str(tmp_path / "none.png"), "--out", str(out), *given_always]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'none.png'}: no such file\n"


@pytest.mark.parametrize(("value", "reason"), [(None, "RANK: not set"), ("one", "RANK: 'one' is not a number")])
def test_what_is_missing_from_the_environment_is_named(monkeypatch, value, reason):
    monkeypatch.delenv("RANK", raising=False)
    if value is not None:
        monkeypatch.setenv("RANK", value)
    with pytest.raises(StillmotionError, match=reason), distributed.init_from_environment():
        pass


def test_the_exchange_is_around_every_temporal_layer_and_all_their_norms(pipe):
    layers = temporal_layers(pipe.unet)
    names = " ".join(layers)
    assert any(word in names for word in ("temp_convs", "motion_modules"))
    split = object.__new__(FrameSplit)  # no pass is made, so it needs no ranks
    undo = exchange_around(layers, split)
    norms = [m for layer in layers.values() for m in layer.modules() if isinstance(m, nn.GroupNorm)]
    assert norms
    assert all(isinstance(norm, SynchronisedGroupNorm) for norm in norms)
    undo()
    assert not any(isinstance(m, SynchronisedGroupNorm) for m in pipe.unet.modules())


if __name__ == "__main__":
    sys.exit(run_processes(Path(sys.argv[1]), int(sys.argv[2])))
