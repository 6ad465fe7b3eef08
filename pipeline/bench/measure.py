"""`python -m pipeline bench`: each optimisation measured in one run, against the one before and against diffusers."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ..machine import PeakMemory, machine, versions
from ..optimise.base import NotApplicable
from ..optimise.precision import Trial, choose, try_precisions
from .ladder import Ladder, Rung, plan
from .requests import diffusers_request, own_request, picture
from .timing import device_peak

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

PRESETS = ("tiny", "i2vgen-xl")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class RungResult:
    """Figures of one rung. A request is picture and prompt to finished frames.

    Attributes:
        name, note, kept: as `Rung` says.
        steps, passes: of the solver, and U-Net calls of a request.
        median_s, times_s: of a request, warm-up left out.
        speedup: of a request against the rung "teacher" of the same run; of one pass, where `partial`.
        partial: measured with fewer steps than the rung would take, and compared with the teacher's frames
            of as many.
        pass_s: median step over its guidance branches.
        pass_speedup: against the rung "diffusers"; None where there is none.
        peak_memory_mb: most memory during a request, of the GPU or of the process; None where it cannot be told.
        flops: of a request, counted (a multiplication and an addition are two).
        share_of_peak: flops a second over those of a large matrix product in the same precision.
        psnr_to_previous_db, psnr_to_teacher_db: of the frames, from the same noise.
        build_s: compiling or tracing, once, the first request included.
        skipped: why there are no figures.
    """

    name: str
    note: str
    kept: bool
    steps: int | None = None
    passes: int | None = None
    median_s: float | None = None
    times_s: list[float] = field(default_factory=list)
    speedup: float | None = None
    pass_s: float | None = None
    pass_speedup: float | None = None
    peak_memory_mb: float | None = None
    flops: int | None = None
    share_of_peak: float | None = None
    psnr_to_previous_db: float | None = None
    psnr_to_teacher_db: float | None = None
    build_s: float | None = None
    partial: bool = False
    skipped: str | None = None


@dataclass(frozen=True)
class BenchResult:
    """Content of `bench.json`.

    Attributes:
        peak_flops: of a large matrix product on this machine, by precision, a second.
        trials: of U-Net and decoder in each precision.
    """

    preset: str
    model: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    shape: dict[str, int]
    peak_flops: dict[str, float]
    trials: list[Trial]
    rungs: list[RungResult]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Taken:
    """What is gathered of a rung over the rounds."""

    rung: Rung
    times: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    frames: np.ndarray | None = None
    teacher_frames: np.ndarray | None = None
    memory: float | None = None
    flops: int | None = None
    build_s: float | None = None
    skipped: str | None = None
    solver_steps: int = 0
    passes: int = 0
    dtype: torch.dtype = torch.float32


def bench(
    pipe: ImageAnimationPipeline,
    model: str,
    preset: str,
    folder: Path,
    rungs: Sequence[str] | None = None,
    repeats: int = 3,
    strict: bool = False,
    tell: Tell = lambda _text: None,
) -> BenchResult:
    """Measure the ladder: all rungs in turn, `repeats` times over, so that a drift of the machine hits all alike.

    Args:
        pipe: as the checkpoint has it, in float32.
        folder: for what is built.
        rungs: names of those to measure; None: all.
        strict: raise where an optimisation does not fit, instead of going on without it.

    Raises:
        ValueError: an unknown rung, or `repeats` below 1.
        NotApplicable: with `strict`.
    """
    if repeats < 1:
        raise ValueError(f"repeats: {repeats} is below 1")
    trials = precision_trials(pipe)
    chosen = choose(trials)
    keep = chosen["unet"] is not torch.float32
    on_gpu = pipe.device.type == "cuda"
    ladder = Ladder(
        pipe,
        chosen["unet"] if keep else torch.bfloat16,
        chosen["vae"] if keep else torch.float32,
        keep_precision=keep,
        folder=folder / "programs",
        whole=on_gpu,
    )
    taken = [_Taken(rung) for rung in ladder.rungs(None if rungs is None else [r for r in rungs if r != "diffusers"])]
    if rungs is None or "diffusers" in rungs:
        taken.insert(0, _Taken(Rung("diffusers", "diffusers' own pipeline, two guidance branches", (), kept=False)))
    for turn in range(repeats + 1):  # the first warms up, and is where output, memory and operations are looked at
        for one in taken:
            if one.skipped is not None:
                continue
            began = time.perf_counter()
            why_not = _take(pipe, one, first=turn == 0, strict=strict)
            if turn == 0:
                tell(f"{one.rung.name}: {why_not or f'ready after {time.perf_counter() - began:.1f} s'}")
    height, width = pipe.default_size
    dtypes = {one.dtype for one in taken if one.skipped is None}
    # A processor that emulates half precision still has float32's units: they are the peak.
    peaks = {
        str(dtype).removeprefix("torch."): 1e12
        * device_peak(pipe.device, dtype if on_gpu else torch.float32).tflops_per_s
        for dtype in dtypes
    }
    return BenchResult(
        preset=preset,
        model=model,
        command="python -m pipeline " + " ".join(sys.argv[1:]),
        machine=machine(),
        versions=versions(),
        shape={"frames": pipe.config.num_frames, "height": height, "width": width},
        peak_flops=peaks,
        trials=trials,
        rungs=_summarise(taken, ladder, peaks),
    )


def _take(pipe: ImageAnimationPipeline, one: _Taken, *, first: bool, strict: bool) -> str | None:
    """Run one request of a rung and note its figures; why there are none, where it does not apply."""
    request = diffusers_request if one.rung.name == "diffusers" else own_request
    with ExitStack() as stack:
        if first and one.rung.steps is not None:
            few = plan(pipe, one.rung.steps)
            one.teacher_frames = request(pipe)
            few.undo()
        began = time.perf_counter()
        try:
            stack.enter_context(one.rung.enter(pipe))
            if first:
                # Operations cannot be counted in a program; the rung below it computes the same.
                counting = nullcontext() if one.rung.program else FlopCounterMode(display=False)
                with PeakMemory() as memory, counting:
                    one.frames = request(pipe)
                one.build_s = time.perf_counter() - began
                one.dtype, one.memory = pipe.network.dtype, memory.peak_mb
                if isinstance(counting, FlopCounterMode):
                    one.flops = counting.get_total_flops()
                return None
        except NotApplicable as error:
            if strict:
                raise
            one.skipped = str(error)
            return one.skipped
        ends = [time.perf_counter()]
        request(pipe, lambda: ends.append(time.perf_counter()))
        one.times.append(time.perf_counter() - ends[0])
        branches = 2 if one.rung.name == "diffusers" else _branches(pipe)
        one.solver_steps = pipe.config.num_inference_steps
        one.passes = (len(ends) - 1) * branches
        one.steps += [float(s) / branches for s in np.diff(ends[1:])] or [one.times[-1] / branches]
        return None


def _branches(pipe: ImageAnimationPipeline) -> int:
    from ..model.guidance import Guidance

    return Guidance(pipe.config.guidance_scale, pipe.config.image_guidance_scale).passes


def _summarise(taken: list[_Taken], ladder: Ladder, peaks: dict[str, float]) -> list[RungResult]:
    by_name = {one.rung.name: one for one in taken}
    teacher, diffusers = by_name.get("teacher"), by_name.get("diffusers")
    results = []
    previous: _Taken | None = None  # the rung that this one stands on
    for one in taken:
        rung = one.rung
        if one.skipped is not None:
            results.append(RungResult(rung.name, rung.note, rung.kept, skipped=one.skipped))
            continue
        median, pass_s = statistics.median(one.times), statistics.median(one.steps)
        # A program computes what the rung below it computes; its own operations are not seen from outside.
        flops = previous.flops if rung.program and previous is not None else one.flops
        peak = peaks[str(one.dtype).removeprefix("torch.")]
        shown = rung.name != "diffusers" and not rung.speed_only
        results.append(
            RungResult(
                name=rung.name,
                note=rung.note,
                kept=rung.kept,
                steps=one.solver_steps,
                passes=one.passes,
                median_s=round(median, 4),
                times_s=[round(t, 4) for t in one.times],
                speedup=_ratio(teacher, lambda t: statistics.median(t.times), median)
                if rung.steps is None
                else _ratio(teacher, lambda t: statistics.median(t.steps), pass_s),
                pass_s=round(pass_s, 5),
                pass_speedup=_ratio(diffusers, lambda t: statistics.median(t.steps), pass_s),
                peak_memory_mb=None if one.memory is None else round(one.memory, 1),
                flops=flops,
                share_of_peak=None if flops is None else round(flops / median / peak, 4),
                psnr_to_previous_db=_psnr(one, previous) if shown else None,
                psnr_to_teacher_db=_psnr(one, teacher) if shown else None,
                partial=rung.steps is not None,
                build_s=round(ladder.build_s.get(rung.name, 0.0) or one.build_s or 0.0, 2) if rung.program else None,
            )
        )
        if rung.kept:
            previous = one
    return results


def _ratio(base: _Taken | None, figure: Callable[[_Taken], float], value: float) -> float | None:
    return None if base is None or base.skipped is not None or not base.times else round(figure(base) / value, 3)


def _psnr(one: _Taken, other: _Taken | None) -> float | None:
    from ..judge.metrics import psnr_db

    if other is None or other is one:
        return None
    reference = other.frames if one.teacher_frames is None else one.teacher_frames
    if reference is None or one.frames is None:
        return None
    return round(float(psnr_db(torch.from_numpy(one.frames)[None], torch.from_numpy(reference)[None])), 2)


@torch.no_grad()
def precision_trials(pipe: ImageAnimationPipeline) -> list[Trial]:
    """One U-Net pass and one decoded frame in each precision, from fixed noise."""
    from ..model.call_arguments import check_controls
    from ..model.denoiser import Predict
    from ..model.families import Request, stack
    from ..model.guidance import Guidance

    (height, width), frames, family = pipe.default_size, pipe.config.num_frames, pipe.family
    guidance = Guidance(pipe.config.guidance_scale, pipe.config.image_guidance_scale)
    shape = family.latent_shape(pipe.parts, frames, height, width)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1)).to(pipe.device)
    skip = pipe.default_clip_skip  # as a call without arguments has it

    def predict() -> Predict:
        generator = torch.Generator().manual_seed(1)
        controls = check_controls(family, pipe.parts, {})
        request = Request(
            [picture((height, width))], frames, height, width, pipe.config.fps, generator=generator, controls=controls
        )
        seen = family.encode_picture(pipe.parts, request)
        conds = pipe.conditions(["a red circle moves right"], [""], seen, guidance.branches, skip)
        return pipe.denoiser.start(stack(list(conds.values())))

    timestep = torch.tensor(pipe.scheduler.config.num_train_timesteps // 2, device=pipe.device)

    def one_pass() -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return predict()(torch.cat([noise] * guidance.passes).to(pipe.network.dtype), timestep)

    def decode() -> torch.Tensor:
        return pipe.decode_latents(noise[:, :, :1])

    return try_precisions(pipe, one_pass, decode)
