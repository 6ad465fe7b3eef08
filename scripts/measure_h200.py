# ruff: noqa: INP001  # a script, no package
"""Measures in ten minutes of one GPU what `benchmarks/h200` says of models of published sizes.

    PYTHONPATH=. python scripts/measure_h200.py --out benchmarks/h200
    PYTHONPATH=. python scripts/measure_h200.py --small --out small       # tries it on any machine

Each study is a process with its own share of the minutes and writes a file as soon as it has a figure: what is cut
short is kept. Weights are random, made on the GPU; `--small` has tiny networks. A request of many steps is not waited
for: its steps are alike, so that two of them are measured, and the file says how many.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import first_line
from pipeline.machine import PeakMemory, machine, versions
from pipeline.writing import write_atomically

if TYPE_CHECKING:
    from pipeline import ImageAnimationPipeline
    from pipeline.optimise.named import Apply

Figures = dict[str, Any]

GOALS = {
    "pass": "1.8 times diffusers eager and 1.2 times diffusers compiled, in bfloat16",
    "request": "30 times, 40 x 2 passes against 4 x 1, decoder and file included (I2VGen-XL: 100 times, float32 32 x 3 "
    "against 8 x 1 compiled)",
    "share_of_peak": "50 % of the chip's, of a pass of I2VGen-XL",
}

SMALL_I2VGEN: dict[str, Figures] = {
    "unet": {
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "sample_size": 8,
    },
    "vae": {"block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 32},
    "text": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "vision": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def wan(preset: str, small: bool) -> ImageAnimationPipeline:
    """Return a Wan of a published size, or a tiny one of the same kind."""
    from pipeline.bench.presets import WAN, random_wan
    from pipeline.machine import default_device

    if not small:
        return random_wan(WAN[preset], default_device())
    own = WAN[preset]
    widths = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "ffn_dim": 16}
    size = {"num_frames": 5, "height": 32, "width": 64}
    sizes = {
        "transformer": {**own["transformer"], **widths},
        "vae": {**own["vae"], "base_dim": 3, "decoder_base_dim": None, "num_res_blocks": 1},
        "text": {"d_model": 32, "d_ff": 16, "d_kv": 8, "num_heads": 4},
        "request": {**own["request"], **size},
    }
    return random_wan(sizes, default_device())


def i2vgen(small: bool) -> ImageAnimationPipeline:
    """Return an I2VGen-XL of the published size, or a tiny one."""
    from pipeline.bench.presets import PUBLISHED, random_i2vgen_xl
    from pipeline.machine import default_device

    return random_i2vgen_xl(SMALL_I2VGEN if small else PUBLISHED, 4 if small else 16, default_device())


def one_pass(pipe: ImageAnimationPipeline, rungs: Sequence[str], calls: int) -> Figures:
    """Measure one pass of the network against diffusers', as `pipeline bench --part pass` does."""
    from pipeline.bench import bench

    with tempfile.TemporaryDirectory() as folder:
        dtype = torch.bfloat16 if pipe.device.type == "cuda" else None
        result = bench(pipe, "random weights", "", Path(folder), rungs, 2, part="pass", calls=calls, dtype=dtype)
    return {"rungs": result.to_dict()["rungs"], "shape": result.shape, "peak_flops": result.peak_flops}


def cast(pipe: ImageAnimationPipeline) -> Figures:
    """Bring networks and encoders to bfloat16 for all that follows, where there is a GPU."""
    from pipeline.optimise.precision import set_precision

    if pipe.device.type == "cuda":
        set_precision(pipe, torch.bfloat16)
    return {"dtype": str(pipe.network.dtype)}


def request(
    pipe: ImageAnimationPipeline, steps: int, measured: int, scales: Figures, changes: Sequence[Apply] = ()
) -> Figures:
    """Measure a request, picture and prompt to an MP4 file, part by part.

    Args:
        steps: of the solver, in the request that the figures are of.
        measured: steps that are made.
    """
    from pipeline.bench.ladder import branches_of, plan
    from pipeline.media.video import encode
    from pipeline.model.example import seeded_request
    from pipeline.optimise.base import Applied
    from pipeline.optimise.timing import Account, clock
    from pipeline.spans import listen

    applied = Applied()
    try:
        applied.changes.append(plan(pipe, measured, **scales))
        for change in changes:
            applied.fits(partial(change, pipe))
        if changes:
            seeded_request(pipe, num_inference_steps=1, output_type="latent")  # compiles
        account = Account()
        with PeakMemory() as memory, listen(account):
            clip = seeded_request(pipe)
            began = clock()
            data = encode((clip * 255).round().astype(np.uint8), pipe.config.fps, "mp4")
            file_s = clock() - began
        parts = {name: round(sum(seconds), 4) for name, seconds in account.parts.items()}
        parts["step"] *= steps / measured
        parts["video file"] = round(file_s, 4)
        return {
            "passes": f"{steps} x {branches_of(pipe)}",
            "steps_measured": measured,
            "changes": [change.detail for change in applied.changes[1:]],
            "skipped": applied.skipped,
            "parts_s": parts,
            "request_s": round(sum(parts.values()), 4),
            "bytes": len(data),
            "peak_memory_mb": memory.peak_mb,
        }
    finally:
        applied.undo()


def requests(pipe: ImageAnimationPipeline, teacher: int, scales: Figures, student: int) -> Figures:
    """Measure a teacher's request as the checkpoint has it, and a student's of one pass a step as a server runs it.

    Args:
        teacher, student: steps of each.
        scales: of the teacher's guidance.
    """
    from pipeline.bench.ladder import Ladder
    from pipeline.optimise.base import has_unet
    from pipeline.optimise.layout import channels_last
    from pipeline.optimise.named import NAMED
    from pipeline.optimise.prepared import prepare_once

    slow = request(pipe, teacher, 2, scales)
    cast(pipe)
    changes: list[Apply] = [prepare_once, NAMED["compile-blocks"].apply]
    if has_unet(pipe) and pipe.device.type != "cuda":
        changes = [prepare_once]  # a processor's compiler takes minutes for a U-Net
    elif has_unet(pipe):
        ladder = Ladder(pipe, pipe.network.dtype, None, keep_precision=True, folder=Path())
        attention = partial(ladder.attention, compiled=True)
        changes = [prepare_once, lambda pipe: channels_last(pipe.network), attention, ladder.compile]
    fast = request(pipe, student, student, {"guidance_scale": 1.0, "image_guidance_scale": None}, changes)
    return {"teacher": slow, "student": fast, "times_as_fast": round(slow["request_s"] / fast["request_s"], 2)}


def update(pipe: ImageAnimationPipeline) -> Figures:
    """Measure one update of a student of 4 steps with LoRA, its teacher taking 8 steps."""
    from pipeline.bench.subjects import updates
    from pipeline.optimise.timing import seconds_of

    settings = {"lora_rank": 16, "gradient_checkpointing": True, "student_steps": 4, "teacher_steps": 8}
    with (
        tempfile.TemporaryDirectory() as folder,
        PeakMemory() as memory,
        updates(pipe, Path(folder), settings) as (run, millions),
    ):
        (took,) = seconds_of(run)
    return {"settings": settings, "update_s": took, "trained_millions": millions, "peak_memory_mb": memory.peak_mb}


def served(small: bool) -> Figures:
    """Package the shipped student with a program compiled ahead of time, start its server, and ask it over HTTP."""
    import bentoml
    import httpx

    from pipeline.commands.demo import serving
    from pipeline.packaging.package import package
    from pipeline.serve.sources import EMBEDDED_STUDENT, open_checkpoint

    runtime = "torchscript" if small else "aot"  # a compiler of processors takes minutes
    packaged = package(open_checkpoint(str(EMBEDDED_STUDENT)), {}, runtime)
    picture, found = Path("assets/balloon.png").read_bytes(), []
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            serving(packaged.tag, 0, Path(folder) / "server.log", 300) as address,
        ):
            for _ in range(5):
                began = time.perf_counter()
                files, data = {"image": picture}, {"prompt": "a red circle moves up"}
                answer = httpx.post(f"{address}/animate", files=files, data=data, timeout=120)
                answer.raise_for_status()
                found.append(round(time.perf_counter() - began, 4))
            metrics = httpx.get(f"{address}/metrics", timeout=60).text
            fallbacks = [line for line in metrics.splitlines() if line.startswith("stillmotion_runtime_fallback_total")]
            ran = {"runtime": re.findall(r'\bruntime="(\w+)"', metrics)[:1], "fallbacks": fallbacks}
    finally:
        bentoml.models.delete(packaged.tag)
    return {"requests_s": found, **ran, "compute_s": answer.headers["x-stillmotion-compute-seconds"]}


def parts_of(study: str, small: bool) -> dict[str, Callable[[], Figures]]:
    """Return what a study measures, in order."""
    if study == "service":
        return {"service": partial(served, small)}
    if study == "i2vgen-xl":
        pipe, scales = i2vgen(small), {"guidance_scale": 9.0, "image_guidance_scale": 1.5}
        return {
            "pass": partial(one_pass, pipe, ["ours channels-last" if small else "ours compile"], 1 if small else 6),
            "request": partial(requests, pipe, 32, scales, 8),
        }
    pipe, teacher_steps = wan(study, small), 50 if study == "wan-ti2v-5b" else 40
    regional, whole = ["ours compile blocks", "ours float8 compiled"], ["diffusers + compile"]
    return {
        "pass": partial(one_pass, pipe, ["ours attention"] if small else regional, 1 if small else 2),
        "cast": partial(cast, pipe),
        "request": partial(requests, pipe, teacher_steps, {"guidance_scale": 5.0}, 4),
        "update": partial(update, pipe),
        # The whole network compiled takes minutes: last, and only where they are left.
        **({} if small else {"pass of diffusers compiled": partial(one_pass, pipe, whole, 2)}),
    }


STUDIES = {"wan-ti2v-5b": 0.3, "wan-a14b": 0.35, "i2vgen-xl": 0.25, "service": 0.1}
"""Shares of the minutes; what one does not use is the next one's."""


def study(name: str, out: Path, small: bool) -> None:
    """Measure one study's parts, and write what there is after each."""
    from pipeline.quiet import quiet_libraries

    quiet_libraries()
    document: Figures = {"command": "python " + " ".join(sys.argv), "machine": machine(), "versions": versions()}
    document |= {"goals": GOALS, "small": small, "found": {}}
    for part, measure in parts_of(name, small).items():
        began = time.perf_counter()
        try:
            found = measure()
        except Exception as error:  # noqa: BLE001  # of libraries and the chip; the other parts are measured all the same
            found = {"failed": f"{type(error).__name__}: {first_line(error)}"}
        document["found"][part] = {**found, "took_s": round(time.perf_counter() - began, 1)}
        write_atomically(out / f"{name}.json", json.dumps(document, indent=2) + "\n")
        took = document["found"][part]["took_s"]
        sys.stdout.write(f"{name}, {part}: {found.get('failed') or 'measured'} after {took:.0f} s\n")
        sys.stdout.flush()


def main() -> int:
    """Run the studies, each in a process of its own and within its time; returns how many were cut short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--minutes", type=float, default=9.5, help="for all of them (default: 9.5)")
    parser.add_argument("--small", action="store_true", help="tiny networks, to try the script itself")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/h200"))
    parser.add_argument("--here", action="store_true", help="in this process, without a limit")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.here:
        with contextlib.suppress(KeyboardInterrupt):  # cut short: what there is has been written
            for name in options.studies:
                study(name, options.out, options.small)
        return 0
    ends, cut = time.monotonic() + 60 * options.minutes, 0
    for k, name in enumerate(options.studies):
        share = STUDIES[name] / sum(STUDIES[other] for other in options.studies[k:])
        command = [sys.executable, __file__, "--here", "--studies", name, "--out", str(options.out)]
        process = subprocess.Popen([*command, *["--small"] * options.small])  # noqa: S603  # ourselves
        try:
            process.wait(share * (ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # a server that it has started ends too
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
            cut += 1
            sys.stdout.write(f"{name}: cut short; what it had is in {options.out / name}.json\n")
    return cut


if __name__ == "__main__":
    sys.exit(main())
