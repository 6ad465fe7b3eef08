"""One U-Net pass: our variants and diffusers' own, measured in one run.

A pass is one call of the U-Net for all guidance branches at once. Every variant gets the same inputs,
and its output is compared with that of diffusers' U-Net in float32.

All variants share one U-Net: the changes of one are put in place (`enter`, which also compiles),
measured (`measure`), and undone (`Entered.leave`) before the next. diffusers in the same precision is
measured before the first and after each one, and a ratio is against the two measurements on either
side, so that a machine that slows down favours nobody.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..errors import StillmotionError, first_line
from ..machine import PeakMemory, machine, versions
from .profiling import PassProfile, profile_pass
from .timing import Peak, device_peak, time_calls, wait
from .variants import BASELINE, PREPARED, REFERENCE, VARIANTS, PassInputs, Run, Stage, Variant, pass_inputs, program_of

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

Quiet = Callable[[], AbstractContextManager[object]]
"""Makes a context in which nothing else uses the device; only measurements are made inside."""

Tell = Callable[[str], None]

WARM_UP = 3
"""Passes before the timed ones, the first of a program left out: CUDA graphs are recorded in the second."""

MOST_ERROR = 0.1
"""Relative error of one pass; bfloat16 has 8 bits, and hundreds of layers bring it to one or two hundredths."""


@dataclass
class VariantResult:
    """Figures of one variant; a pass is of all guidance branches.

    Attributes:
        name, note: as `Variant` says.
        dtype: of weights and activations.
        details: changes that are in place, and those that did not fit.
        pass_ms, times_ms: median, and each timed pass.
        ratio_to_diffusers: diffusers' median of the same run over this one; above 1 is faster.
        gflop: of a pass as this variant computes it, counted before compilation.
        tflops_per_s, share_of_peak: of `gflop` in the median pass, the latter against a large matrix product.
        kernel_ms: of one pass, all kernels added up; less than `pass_ms` where the device waits.
        peak_memory_mb: most memory during a pass, of the GPU (all that lies there) or of the process.
        pass_memory_mb: most that a pass adds to what lay on the GPU before; None on a CPU.
        relative_error: of the output against float32, norm of the difference over norm of the reference.
        wrong: whether that error is beyond what rounding explains (`MOST_ERROR`): its times are then worth nothing.
        psnr_db: the same as a ratio of the reference's range to the mean difference, at most 100.
        build_s: until the first pass is done; changes and compilation are in it.
        graphs, graph_breaks: of `torch.compile`.
        skipped: why there are no figures.
    """

    name: str
    note: str
    dtype: str
    details: list[str] = field(default_factory=list)
    pass_ms: float | None = None
    times_ms: list[float] = field(default_factory=list)
    ratio_to_diffusers: float | None = None
    gflop: float | None = None
    tflops_per_s: float | None = None
    share_of_peak: float | None = None
    kernel_ms: float | None = None
    peak_memory_mb: float | None = None
    pass_memory_mb: float | None = None
    relative_error: float | None = None
    wrong: bool = False
    psnr_db: float | None = None
    build_s: float | None = None
    graphs: int | None = None
    graph_breaks: int | None = None
    skipped: str | None = None


@dataclass
class PassResult:
    """Content of `pass.json`.

    Attributes:
        shape: branches, frames, and height and width of a clip in pixels.
        peaks: of the device, by precision.
        baseline_ms: medians of diffusers in the order they were taken, for the drift of the machine.
        profiles: by name of the variant; each is written to a file of its own.
    """

    model: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    shape: dict[str, int]
    dtype: str
    unet_parameters: int
    peaks: dict[str, Peak]
    baseline_ms: list[float] = field(default_factory=list)
    variants: list[VariantResult] = field(default_factory=list)
    profiles: dict[str, PassProfile] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All but the profiles."""
        content = asdict(self)
        del content["profiles"]
        return content


@dataclass
class Entered:
    """A variant that is in place and has run once.

    Attributes:
        output: of its first pass, float32, in the device's memory.
    """

    variant: Variant
    stage: Stage
    run: Run | None
    build_s: float
    output: Tensor

    def leave(self) -> None:
        """Undo the changes, and give back the memory of what was compiled."""
        self.run = None
        self.stage.stack.close()
        _free()


def enter(variant: Variant, stage: Stage) -> Entered:
    """Put a variant's changes in place, compile it and run it once.

    Raises:
        Exception: whatever the changes or the compiler raise; nothing is left in place then.
    """
    began = time.perf_counter()
    with ExitStack() as stack:
        stage.stack = stack
        run = variant.build(stage)
        output = run().float().clone()  # a CUDA graph writes the next pass over it
        wait(output.device)
        stage.stack = stack.pop_all()
    return Entered(variant, stage, run, time.perf_counter() - began, output)


def measure(run: Run, device: torch.device, passes: int, quiet: Quiet = nullcontext) -> list[float]:
    """Milliseconds of each of `passes` passes, after some that warm up."""
    time_calls(run, device, WARM_UP - 1)
    with quiet():
        time_calls(run, device, 1)
        return time_calls(run, device, passes)


def choose_variants(names: Sequence[str] | None, device: torch.device) -> list[Variant]:
    """Variants by name, in the order of `VARIANTS`, diffusers always among them.

    Args:
        names: None takes those of the default list; on a CPU none that is compiled.

    Raises:
        ValueError: an unknown name.
    """
    known = [variant.name for variant in VARIANTS]
    if names is None:
        chosen = [v.name for v in VARIANTS if v.by_default and (device.type == "cuda" or not v.compiled)]
    elif unknown := [name for name in names if name not in known]:
        raise ValueError(f"variants: {unknown[0]!r} is not one of {', '.join(known)}")
    else:
        chosen = [*names, BASELINE]
    return [variant for variant in VARIANTS if variant.name in chosen]


@dataclass
class _Session:
    """What the measurements of one run share."""

    pipe: ImageAnimationPipeline
    inputs: PassInputs
    dtype: torch.dtype
    folder: Path
    passes: int
    quiet: Quiet
    graphs_mode: str
    profiled: bool
    backends: dict[bool, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.inputs.latents.device

    def enter(self, variant: Variant) -> Entered:
        dtype = torch.float32 if variant.name == REFERENCE else self.dtype
        return enter(variant, Stage(self.pipe, self.inputs, dtype, self.folder, self.graphs_mode, self.backends))

    def output(self, name: str) -> Tensor:
        entered = self.enter(program_of(name))
        entered.leave()
        return entered.output

    def flops(self, name: str) -> int:
        """Operations of a pass, a multiplication and an addition being two."""
        entered = self.enter(program_of(name))
        try:
            assert entered.run is not None
            with FlopCounterMode(display=False) as counter:
                entered.run()
            return int(counter.get_total_flops())
        finally:
            entered.leave()

    def times(self, variant: Variant) -> list[float]:
        entered = self.enter(variant)
        try:
            assert entered.run is not None
            return measure(entered.run, self.device, self.passes, self.quiet)
        finally:
            entered.leave()


@torch.no_grad()
def bench_pass(
    pipe: ImageAnimationPipeline,
    model: str,
    variants: Sequence[Variant],
    dtype: torch.dtype,
    folder: Path,
    passes: int = 10,
    branches: int = 3,
    quiet: Quiet = nullcontext,
    graphs_mode: str = "reduce-overhead",
    profiled: bool = True,
    tell: Tell = lambda _text: None,
    save: Callable[[PassResult], None] = lambda _result: None,
) -> PassResult:
    """Measure variants of one U-Net pass; one that fails is noted as skipped, and the others go on.

    Args:
        pipe: of the i2vgen-xl family, as the checkpoint has it, in float32; it is left as it was.
        variants: of `choose_variants`.
        dtype: of all but the float32 reference.
        folder: for what is built.
        branches: guidance branches of a pass.
        quiet: wraps each measurement and each profile, and nothing else.
        graphs_mode: mode of `torch.compile` for the variant with CUDA graphs.
        save: called with what there is after each variant, so that a run that is cut short is not lost.

    Raises:
        StillmotionError: of another family.
    """
    if pipe.family.name != "i2vgen-xl":
        raise StillmotionError(f"pass: it is measured for the i2vgen-xl family, and this is {pipe.family.name}")
    session = _Session(
        pipe, pass_inputs(pipe, branches), dtype, folder / "programs", passes, quiet, graphs_mode, profiled
    )
    height, width = pipe.default_size
    reference = session.output(REFERENCE)
    flops = {False: session.flops(BASELINE), True: session.flops(PREPARED)}
    dtypes = {torch.float32, dtype} if any(v.name == REFERENCE for v in variants) else {dtype}
    with quiet():
        peaks = {_name(one): device_peak(session.device, one) for one in sorted(dtypes, key=str)}
    result = PassResult(
        model=model,
        command="python -m pipeline " + " ".join(sys.argv[1:]),
        machine=machine(),
        versions=versions(),
        shape={"branches": branches, "frames": pipe.config.num_frames, "height": height, "width": width},
        dtype=_name(dtype),
        unet_parameters=sum(parameter.numel() for parameter in pipe.unet.parameters()),
        peaks=peaks,
    )
    ordered = sorted(variants, key=lambda v: v.name != BASELINE)  # the baseline first, the others as they are
    for variant in ordered:
        taken = VariantResult(variant.name, variant.note, _name(torch.float32 if variant.name == REFERENCE else dtype))
        result.variants.append(taken)
        try:
            _take(session, variant, taken, reference, result.profiles)
            assert taken.pass_ms is not None
            around = [*result.baseline_ms[-1:], taken.pass_ms]
            if variant.name != BASELINE:
                around = [around[0], statistics.median(session.times(program_of(BASELINE)))]
            result.baseline_ms.append(round(around[-1], 4))
            taken.ratio_to_diffusers = round(statistics.mean(around) / taken.pass_ms, 4)
            taken.gflop = round(flops[variant.prepared] / 1e9, 3)
            taken.tflops_per_s = round(taken.gflop / taken.pass_ms, 4)
            taken.share_of_peak = round(taken.tflops_per_s / peaks[taken.dtype].tflops_per_s, 4)
        except Exception as error:  # a compiler raises what it likes, and the others are to go on
            taken.skipped = first_line(error)
            if variant.name == BASELINE:
                raise
        if taken.skipped is not None:
            _free()  # now that the error no longer holds what it came from
        tell(f"{variant.name}: {taken.skipped or f'{taken.pass_ms:.2f} ms, ready after {taken.build_s:.1f} s'}")
        save(result)
    return result


def _take(
    session: _Session,
    variant: Variant,
    taken: VariantResult,
    reference: Tensor,
    profiles: dict[str, PassProfile],
) -> None:
    """Enter, measure and leave one variant, and note its figures."""
    device = session.device
    if variant.compiled:
        torch._dynamo.utils.counters.clear()  # noqa: SLF001  # where the compiler counts its graphs
    entered = session.enter(variant)
    try:
        run = entered.run
        assert run is not None
        taken.details, taken.build_s = entered.stage.details, round(entered.build_s, 2)
        taken.relative_error, taken.psnr_db = difference(entered.output, reference)
        taken.wrong = not taken.relative_error <= MOST_ERROR  # neither is NaN
        if variant.compiled:
            counters = torch._dynamo.utils.counters  # noqa: SLF001
            taken.graphs = counters["stats"]["unique_graphs"]
            taken.graph_breaks = sum(counters["graph_break"].values())
        taken.times_ms = [round(t, 4) for t in measure(run, device, session.passes, session.quiet)]
        taken.pass_ms = round(statistics.median(taken.times_ms), 4)
        before = torch.cuda.memory_allocated(device) / 1e6 if device.type == "cuda" else None
        with PeakMemory() as memory:
            run()
            wait(device)
        taken.peak_memory_mb = None if memory.peak_mb is None else round(memory.peak_mb, 1)
        if before is not None and memory.peak_mb is not None:
            taken.pass_memory_mb = round(memory.peak_mb - before, 1)
        if session.profiled:
            with session.quiet():
                profiles[variant.name] = profile_pass(run, device)
            taken.kernel_ms = profiles[variant.name].time_ms
    finally:
        del run
        entered.leave()


def difference(output: Tensor, reference: Tensor) -> tuple[float, float]:
    """Relative error, and PSNR in dB with the reference's range as its peak."""
    apart = output.double() - reference.double()
    relative = float(apart.norm() / reference.double().norm())
    error, peak = float((apart**2).mean()), float(reference.max() - reference.min())
    psnr = 100.0 if error == 0 else min(100.0, 10 * float(torch.log10(torch.tensor(peak**2 / error))))
    return float(f"{relative:.4g}"), round(psnr, 2)


def _free() -> None:
    """Give back a GPU's memory; on a CPU there is enough, and no figure depends on it."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
