"""A transformer's pass over processes. Run as a program, this file is those processes; they report to the tests."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from pipeline import ImageAnimationPipeline
from pipeline.errors import StillmotionError
from pipeline.optimise.base import NotApplicable
from pipeline.optimise.context_parallel import share_passes, split_tokens
from pipeline.optimise.prepared import prepare_once
from pipeline.optimise.runtimes import put

ROOT = Path(__file__).parents[2]
KINDS = {"wan-2.1": 4, "wan-2.2-a14b": 4, "wan-2.2-ti2v": 3, "ltx": 4}
"""Families whose transformers diffusers has a plan for, and heads of attention: three do not divide by two."""

HEIGHTS = (2, 3)
"""Of clips, in steps of their size: Wan's tokens of the second do not divide by two."""


def with_heads(pipe: Any, heads: int) -> Any:
    """Return a pipeline of diffusers whose transformers have so many heads; four processes want four."""
    torch.manual_seed(0)
    for name in ("transformer", "transformer_2"):
        network = getattr(pipe, name, None)
        if network is not None and network.config.num_attention_heads != heads:
            made = type(network).from_config({**network.config, "num_attention_heads": heads}).eval()
            pipe.register_modules(**{name: made})
    return pipe


def animate(pipe: ImageAnimationPipeline, height: int = 2, seed: int = 0) -> Tensor:
    step = pipe.family.size_step(pipe.parts)
    return pipe(
        Image.linear_gradient("L").resize((40, 40)).convert("RGB"),
        "a red circle moves up",
        num_frames=9,
        height=height * step,
        width=3 * step,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).frames


def watched(pipe: ImageAnimationPipeline, height: int) -> tuple[Tensor, int]:
    """Return a clip's latents, and how many tokens a block of the network computed at once."""
    blocks = getattr(pipe.network, "blocks", None) or pipe.network.transformer_blocks
    seen: list[int] = []
    feed = getattr(blocks[0], "ffn", None) or blocks[0].ff
    hook = feed.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[1]))
    latents = animate(pipe, height)
    hook.remove()
    return latents, max(seen)


def message(action: Any) -> str:
    try:
        action()
    except StillmotionError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing raised"


def study(pipe: ImageAnimationPipeline, prepared: bool) -> list[dict[str, Any]]:
    found = []
    below = prepare_once(pipe) if prepared else None
    for height in HEIGHTS:
        plain, tokens = watched(pipe, height)
        change = share_passes(pipe)
        spread, own = watched(pipe, height)
        change.undo()
        found.append({
            "difference": float((spread - plain).abs().max()),
            "tokens": tokens,
            "own": own,
            "undone": torch.equal(animate(pipe, height), plain),
        })  # fmt: skip
    if below is not None:
        below.undo()
    return found


def refusals(pipe: ImageAnimationPipeline, rank: int) -> dict[str, str]:
    with torch.no_grad():
        first = next(pipe.network.parameters())
        first += rank
        weights = message(lambda: split_tokens(pipe))
        first -= rank
    change = split_tokens(pipe)
    found = {
        "weights": weights,
        "twice": message(lambda: split_tokens(pipe)),
        "noise": message(lambda: animate(pipe, seed=rank)),
    }
    change.undo()
    return found


def work(rank: int, world: int, folder: Path, pipes: dict[str, ImageAnimationPipeline]) -> None:
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    report: dict[str, Any] = {kind: study(pipe, kind != "wan-2.1") for kind, pipe in pipes.items()}
    report["refusals"] = refusals(pipes["wan-2.1"], rank)
    (folder / f"{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


def run_processes(folder: Path, world: int) -> int:
    torch.set_num_threads(1)
    # Two experts among four processes, where each has one head; a number of heads that does not divide among two.
    kinds = [kind for kind, heads in KINDS.items() if (heads % world == 0 if world == 4 else kind != "wan-2.2-a14b")]
    pipes = {kind: ImageAnimationPipeline.from_pretrained(folder / kind) for kind in kinds}
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, world, folder, pipes)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def reports(request, tmp_path_factory) -> list[dict[str, Any]]:
    """What each of 2 or 4 processes found."""
    from .small_checkpoints import SMALL

    folder = tmp_path_factory.mktemp("ranks")
    for kind, heads in KINDS.items():
        with_heads(SMALL[kind](), heads).save_pretrained(folder / kind)
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback}
    done = subprocess.run(
        [sys.executable, __file__, str(folder), str(request.param)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


def studies(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {kind: found for kind, found in report.items() if kind != "refusals"}


def test_a_spread_request_equals_that_of_one_process_whether_or_not_tokens_and_heads_divide(reports):
    for report in reports:
        assert len(studies(report)) >= 3
        for kind, found in studies(report).items():
            assert all(one["difference"] < 2e-5 for one in found), (kind, found)
    rests = {one["tokens"] % len(reports) for found in studies(reports[0]).values() for one in found}
    assert 0 in rests
    assert len(rests) > 1


def test_each_process_computes_its_share_of_the_tokens(reports):
    for kind, found in studies(reports[0]).items():
        for k, one in enumerate(found):
            own = [studies(report)[kind][k]["own"] for report in reports]
            assert sum(own) == one["tokens"], kind
            assert max(own) - min(own) <= 1, kind


def test_undo_puts_everything_back_bit_by_bit(reports):
    assert all(one["undone"] for report in reports for found in studies(report).values() for one in found)


def test_other_noise_or_weights_on_a_rank_are_named_on_all_of_them(reports):
    for report in reports:
        refused = report["refusals"]
        assert refused["weights"].startswith(
            "RanksDiffer: weights of WanTransformer3DModel: process 1 has other values"
        )
        assert refused["noise"].startswith("RanksDiffer: latents: process 1 has other values")
        assert refused["twice"] == "NotApplicable: context parallel: it is in place already"


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> ImageAnimationPipeline:
    from .small_checkpoints import SMALL

    folder = tmp_path_factory.mktemp("wan")
    SMALL["wan-2.1"]().save_pretrained(folder)
    pipe = ImageAnimationPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_what_cannot_be_spread_is_refused_before_processes_are_looked_for(wan, i2vgen):
    with pytest.raises(NotApplicable, match="context parallel: diffusers has no plan for I2VGenXLUNet"):
        split_tokens(i2vgen)
    with pytest.raises(NotApplicable, match=r"context parallel: torch\.distributed is not initialised"):
        share_passes(wan)
    prepared = prepare_once(wan)
    put(wan, [lambda latents, *_: latents], "none", "")
    with pytest.raises(NotApplicable, match="context parallel: a compiled or packaged program"):
        share_passes(wan)
    prepared.undo()


if __name__ == "__main__":
    sys.exit(run_processes(Path(sys.argv[1]), int(sys.argv[2])))
