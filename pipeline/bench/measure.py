"""`python -m pipeline bench`: each optimisation measured in one run, against the one before and against diffusers."""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.flop_counter import FlopCounterMode

from ..errors import StillmotionError, first_line
from ..machine import PeakMemory, dtype_name, machine, versions
from ..model.example import FirstPass, first_pass, seeded_request
from ..model.families import cast_cond
from ..optimise.precision import Trial, choose, difference, precision_trials
from ..optimise.timing import Account, clock, peak_flops, seconds_of
from ..spans import listen
from .ladder import EXACT, REFERENCES, Ladder, Measure, Rung, branches_of, chosen, plan
from .profile import profile_pass
from .result import MOST_ERROR, BenchResult, RungResult
from .subjects import diffusers_request, of_branches, updates

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

Tell = Callable[[str], None]
Run = Callable[[], Tensor | None]

WARM_UP = 3
"""Calls before passes are timed: CUDA graphs are recorded in the second."""

SHORT = 2, 3
"""Steps of the requests whose operations are counted."""


@dataclass
class _Taken:
    """What is gathered of a rung over the turns."""

    rung: Rung
    result: RungResult
    account: Account = field(default_factory=Account)
    output: Tensor | None = None
    reference: Tensor | None = None
    dtype: torch.dtype = torch.float32
    steps: int = 0
    branches: int = 1
    requests: int = 0
    flops: dict[int, int] = field(default_factory=dict)

    def keep(self, output: Tensor | None) -> None:
        """Keep the first output; a CUDA graph writes the next one over it."""
        if self.output is None and output is not None:
            self.output = output.float().clone()

    def count(self, run: Run) -> Tensor | None:
        """Run once and note the operations by the calls of the network in a request."""
        self.account.parts.clear()
        with FlopCounterMode(display=False) as counter:
            output = run()
        self.flops[len(self.account.parts.get("step", ()))] = counter.get_total_flops()
        return output

    def flops_of(self, calls: int) -> int | None:
        """Return the operations of a request of so many calls of the network; None where none were counted."""
        if len(self.flops) < 2:
            return next(iter(self.flops.values()), None)
        (few, least), (more, most) = self.flops.items()
        return least + (most - least) * (calls - few) // (more - few)


def bench(
    pipe: ImageAnimationPipeline,
    model: str,
    preset: str,
    folder: Path,
    rungs: Sequence[str] | None = None,
    repeats: int = 3,
    strict: bool = False,
    tell: Tell = lambda _text: None,
    *,
    part: Measure = "request",
    dtype: torch.dtype | None = None,
    calls: int = 10,
    branches: int | None = None,
    profiled: bool = False,
    save: Callable[[BenchResult], object] = lambda _result: None,
) -> BenchResult:
    """Measure the ladder: all rungs in turn, `repeats` times over, so that a drift of the machine hits all alike.

    Args:
        pipe: as the checkpoint has it, in float32; it is left as it was.
        folder: for what is built.
        rungs: names of those to measure; None: all that are measured by default.
        strict: raise where an optimisation does not fit, instead of going on without it.
        dtype: precision of a pass or of a teacher's pass in an update; None: bfloat16 on a GPU, else float32.
        calls: calls of the network whose mean is one time, where a pass is measured.
        branches: guidance branches of a pass; None: those of a default request.
        profiled: whether the kernels of each pass are looked at.
        save: called with what there is after each rung, so that a run that is cut short is not lost.

    Raises:
        ValueError: an unknown rung, or `repeats` below 1.
        NotApplicable: with `strict`.
        StillmotionError: no rung could be measured.
    """
    if repeats < 1:
        raise ValueError(f"repeats: {repeats} is below 1")
    # Most processors emulate half precision, which takes its time: there it is tried where it is asked for.
    trials = part == "request" and (pipe.device.type == "cuda" or rungs is None or "precision" in rungs)
    session = _Session(pipe, part, folder, dtype, calls, branches, tries_precisions=trials)
    every = session.ladder.rungs(part, rungs or ())
    wanted = [rung.name for rung in chosen(every, rungs)]
    # The rung that the others are held against is always there; in a pass the exact output too, though not timed.
    always = (EXACT, REFERENCES[part]) if part == "pass" else ()
    taken = [
        _Taken(rung, RungResult(rung.name, rung.note, rung.kept, partial=rung.steps is not None))
        for rung in every
        if rung.name in (*wanted, *always)
    ]
    result = session.result(preset, model)
    turns, times = (1, repeats) if part == "distill" else (repeats, 1)
    for turn in range(turns):
        for one in taken:
            untimed = one.rung.name == EXACT and EXACT not in wanted
            if one.result.skipped is not None or (turn and untimed):
                continue
            began = clock()
            try:
                session.visit(one, 0 if untimed else times, result if profiled else None, first=turn == 0)
            except Exception as error:  # compilers and libraries raise what they like, and the others are to go on
                if strict:
                    raise (
                        error if isinstance(error, StillmotionError) else StillmotionError(first_line(error))
                    ) from error
                one.result.skipped = first_line(error)
            if torch.cuda.is_available():  # now that no error holds what it came from any more
                gc.collect()
                torch.cuda.empty_cache()
            if turn == 0:
                tell(f"{one.rung.name}: {one.result.skipped or f'ready after {clock() - began:.1f} s'}")
            _summarise(taken, part, result)
            save(result)
    if not any(rung.times_s for rung in result.rungs):
        raise StillmotionError(f"nothing was measured: {'; '.join(rung.skipped or '' for rung in result.rungs)}")
    return result


class _Session:
    """What the measurements of one run share."""

    def __init__(
        self,
        pipe: ImageAnimationPipeline,
        part: Measure,
        folder: Path,
        dtype: torch.dtype | None,
        calls: int,
        branches: int | None,
        *,
        tries_precisions: bool,
    ) -> None:
        self.pipe, self.part, self.folder, self.calls = pipe, part, folder, calls
        self.trials: list[Trial] = []
        self.first: FirstPass | None = None
        vae_dtype, keep = None, True
        if part == "request":
            self.trials = precision_trials(pipe) if tries_precisions else []
            fastest = choose(self.trials, pipe.device)
            keep = fastest.get("network", torch.float32) is not torch.float32
            dtype, vae_dtype = (fastest["network"], fastest["vae"]) if keep else (torch.bfloat16, torch.float32)
        if part == "pass":
            self.first = of_branches(first_pass(pipe), branches)
        self.dtype = dtype or (torch.bfloat16 if pipe.device.type == "cuda" else torch.float32)
        self.ladder = Ladder(pipe, self.dtype, vae_dtype, keep, folder / "programs")

    def result(self, preset: str, model: str) -> BenchResult:
        """Return what is known before anything is measured."""
        pipe, (height, width) = self.pipe, self.pipe.default_size
        peaks = {"float32": peak_flops(pipe.device, torch.float32)}
        # A processor that emulates half precision still has float32's units: they are the peak.
        half = peak_flops(pipe.device, self.dtype) if pipe.device.type == "cuda" else peaks["float32"]
        peaks[dtype_name(self.dtype)] = half
        branches = len(self.first.latents) if self.first is not None else branches_of(pipe)
        return BenchResult(
            part=self.part,
            preset=preset,
            model=model,
            command="python -m pipeline " + " ".join(sys.argv[1:]),
            machine=machine(),
            versions=versions(),
            shape={"branches": branches, "frames": pipe.config.num_frames, "height": height, "width": width},
            parameters=sum(parameter.numel() for parameter in pipe.network.parameters()),
            peak_flops=peaks,
            trials=self.trials,
        )

    def visit(self, one: _Taken, times: int, profiles: BenchResult | None, *, first: bool) -> None:
        """Enter a rung, look at what it computes where it is the first time, and time it."""
        rung, pipe = one.rung, self.pipe
        if first and rung.steps is not None:
            few = plan(pipe, rung.steps)
            one.reference = torch.from_numpy(seeded_request(pipe))
            few.undo()
        if self.part in {"pass", "decode"} and rung.program and first:
            with replace(rung, changes=()).entered(pipe), self._running(one) as run:
                one.count(run)  # a program's operations cannot be counted from outside
        began = clock()
        with rung.entered(pipe) as applied, self._running(one) as run:
            if first:
                one.result.details = [*(change.detail for change in applied.changes), *applied.skipped]
                one.dtype = pipe.network.dtype
                self._look(one, run)
                if self.part in {"request", "pass"}:
                    one.result.weights_mb = round(held_bytes(pipe) / 2**20, 3)
                one.result.build_s = round(clock() - began, 2) if rung.program else None
            # A program that is entered again may look at its surroundings anew.
            again = int(rung.program and not first)
            warm_up = {"request": again, "decode": again, "pass": WARM_UP, "distill": 0}[self.part]
            number = self.calls if self.part == "pass" else 1
            if times:
                one.requests += times + warm_up
                with PeakMemory() as memory:
                    one.result.times_s += [
                        round(s, 6) for s in seconds_of(lambda: one.keep(run()), times, number, warm_up)
                    ]
                if first:
                    one.result.peak_memory_mb = None if memory.peak_mb is None else round(memory.peak_mb, 1)
            if first and times and profiles is not None and self.part == "pass":
                one.result.kernel_ms, text = profile_pass(run, pipe.device, f"{rung.name}: {profiles.model}")
                profiles.profiles[rung.name] = text
            one.steps, one.branches = pipe.config.num_inference_steps, branches_of(pipe)
            if self.part == "request" and rung.name == "diffusers":
                one.branches = min(2, one.branches)

    def _look(self, one: _Taken, run: Run) -> None:
        """Warm a rung up and count its operations.

        Counting slows a request down, and the calls of the network in it are alike: two short ones tell what a long one
        takes.
        """
        counted = not one.rung.program
        if self.part == "request" and not one.rung.uneven and self.pipe.config.num_inference_steps > max(SHORT):
            for steps in SHORT:
                short = plan(self.pipe, steps)
                try:
                    one.count(run) if counted else run()
                finally:
                    short.undo()
        else:
            one.keep(one.count(run) if counted else run())
        one.account.parts.clear()

    @contextmanager
    def _running(self, one: _Taken) -> Iterator[Run]:
        """Give what is measured while the block runs, with the changes that are in place."""
        pipe = self.pipe
        if self.part == "distill":
            with updates(pipe, self.folder, one.rung.settings) as (update, one.result.trained_millions):
                yield update
        elif self.part == "pass":
            assert self.first is not None
            latents, timestep, cond = self.first
            dtype = pipe.network.dtype
            with torch.no_grad():
                predict = pipe.denoiser.start(cast_cond(cond, dtype))
                yield lambda: predict(latents.to(dtype), timestep)
        elif self.part == "decode":
            family, parts = pipe.family, pipe.parts
            height, width = pipe.default_size
            shape = (1, *family.latent_shape(parts, pipe.config.num_frames, height, width))
            noise = family.draw_noise(shape, torch.Generator().manual_seed(0), parts.device)
            chunk = family.frames_at_once(height, width)
            with torch.no_grad():
                yield lambda: pipe.decode_latents(noise, chunk)
        else:
            with listen(one.account):
                if one.rung.name == "diffusers":
                    yield lambda: torch.from_numpy(diffusers_request(pipe, one.account))
                else:
                    yield lambda: torch.from_numpy(seeded_request(pipe))


def held_bytes(pipe: ImageAnimationPipeline) -> int:
    """Return the bytes of the networks' weights that lie where they compute."""
    weights: list[Any] = [weight for network in pipe.networks for weight in network.parameters()]
    # A quantised weight stands for several tensors, and gives the bytes that it would have without.
    tensors = [
        tensor
        for weight in weights
        for tensor in (
            [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
            if is_traceable_wrapper_subclass(weight)
            else [weight]
        )
    ]
    return sum(tensor.nbytes for tensor in tensors if tensor.device.type == pipe.device.type)


def _summarise(taken: list[_Taken], part: Measure, result: BenchResult) -> None:
    """Put the figures together that there are so far."""
    by_name = {one.rung.name: one for one in taken}
    reference, diffusers_own = by_name.get(REFERENCES[part]), by_name.get("diffusers")
    exact = by_name.get(EXACT if part == "pass" else REFERENCES[part])
    previous: _Taken | None = None  # the rung that this one stands on
    for one in taken:
        rung, figures = one.rung, one.result
        if figures.times_s and figures.skipped is None:
            figures.median_s = statistics.median(figures.times_s)
        if figures.median_s is None:
            continue
        parts, requests = one.account.parts, one.requests
        if part == "request":
            figures.parts_s = {name: round(sum(seconds) / requests, 5) for name, seconds in parts.items()}
            figures.steps = one.steps
            figures.passes = len(parts["step"]) // requests * one.branches
            figures.pass_s = round(statistics.median(parts["step"]) / one.branches, 6)
            if "decode latents" in parts:
                figures.decode_share = round(sum(parts["decode latents"]) / requests / figures.median_s, 3)
            figures.pass_speedup = _ratio(diffusers_own, figures, "pass_s")
        figures.flops = one.flops_of(len(parts.get("step", ())) // max(requests, 1))
        if rung.program and figures.flops is None and previous is not None:
            figures.flops = previous.result.flops  # it computes what the rung below it computes
        if figures.flops is not None:
            peak = result.peak_flops[dtype_name(one.dtype)]
            figures.share_of_peak = round(figures.flops / figures.median_s / peak, 4)
        figures.speedup = _ratio(reference, figures, "pass_s" if rung.steps is not None else "median_s")
        alike = exact is not None and one.branches == exact.branches
        if not rung.speed_only and (alike or rung.name != "diffusers"):
            _compare(one, previous, exact, part)
        if rung.kept:
            previous = one
    result.rungs = [one.result for one in taken if one.result.times_s or one.result.skipped is not None]


def _compare(one: _Taken, previous: _Taken | None, exact: _Taken | None, part: Measure) -> None:
    figures, peak = one.result, {"pass": None, "decode": 2.0}.get(part, 1.0)  # frames in [-1, 1], or in [0, 1]

    def to(other: _Taken | None) -> tuple[float | None, float | None]:
        if other is None or other is one or other.output is None or one.output is None:
            return None, None
        reference = other.output if one.reference is None else one.reference
        return difference(one.output, reference, peak) if reference.shape == one.output.shape else (None, None)

    figures.psnr_to_previous_db = to(previous)[1]
    error, figures.psnr_to_teacher_db = to(exact)
    if part == "pass":
        figures.relative_error = error
        figures.wrong = error is not None and not error <= MOST_ERROR  # neither is NaN


def _ratio(base: _Taken | None, figures: RungResult, name: str) -> float | None:
    before, now = None if base is None else getattr(base.result, name), getattr(figures, name)
    return None if before is None or now is None else round(before / now, 3)
