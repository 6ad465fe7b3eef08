"""The ladder: optimisations one upon the other, each a rung that can be entered and left again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..machine import dtype_name
from ..model.guidance import guidance_for
from ..model.solver import log_snr_solver
from ..optimise import packages
from ..optimise.attention import AttentionShape, Backend, choose_attention, fastest_backends
from ..optimise.base import Applied, Change, NotApplicable, has_unet
from ..optimise.block_cache import cache_blocks
from ..optimise.context import fold_context
from ..optimise.layout import channels_last
from ..optimise.named import ATTENTION, NAMED, Apply, attention_backend, fastest_backend, named
from ..optimise.precision import set_precision
from ..optimise.prepared import prepare_once, prepared_denoisers
from ..optimise.runtimes import (
    Example,
    compile_blocks,
    compile_decoder,
    compile_network,
    compile_whole,
    example_of,
    put,
    run_traced,
)
from ..optimise.step_modules import Step

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

Measure = Literal["request", "pass", "decode", "distill"]
"""What is timed: picture and prompt to frames, one call of the network, latents to frames, or a student's update."""

STEPS = 15
"""Steps of DPM-Solver++ on the log-SNR grid: the article's number."""
_FEW_STEPS = 2

CACHE_THRESHOLD = 0.05
"""Of block caching; diffusers' own default."""

REFERENCES: Mapping[Measure, str] = {
    "request": "teacher",
    "pass": "diffusers",
    "decode": "decoder",
    "distill": "all weights",
}
"""The rung that speed-ups are against."""

EXACT = "diffusers fp32"
"""The rung whose output the others' is compared with, where one pass is measured."""


@dataclass(frozen=True)
class Rung:
    """Optimisations applied together, and what is measured with them in place.

    Attributes:
        name, note: name as in the report, and what it is, for people.
        changes: the rung's own, applied in order, undone in reverse.
        measure: what is timed.
        base: changes of rungs that it stands on; one that does not fit is left out.
        kept: whether later rungs stand on this one.
        program: whether the network runs as a program, whose operations cannot be counted from outside.
        uneven: whether the steps of a request differ in their operations.
        speed_only: whether the output means nothing.
        steps: steps of the solver while it is measured, where a whole request would take minutes.
        settings: settings of the training, where an update is measured.
        by_default: whether it is measured where no names are given.
    """

    name: str
    note: str
    changes: tuple[Apply, ...] = ()
    measure: Measure = "request"
    base: tuple[Apply, ...] = ()
    kept: bool = True
    program: bool = False
    uneven: bool = False
    speed_only: bool = False
    steps: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    by_default: bool = True

    @contextmanager
    def entered(self, pipe: ImageAnimationPipeline) -> Iterator[Applied]:
        """Apply the changes while the block runs.

        Raises:
            NotApplicable: one of the rung's own does not fit; those before it are undone.
        """
        applied = Applied()
        try:
            for apply in self.base:
                applied.fits(partial(apply, pipe))
            for apply in self.changes:
                applied.changes.append(apply(pipe))
            if self.steps is not None:
                applied.changes.append(plan(pipe, self.steps))
            yield applied
        finally:
            applied.undo()


def chosen(rungs: Sequence[Rung], names: Sequence[str] | None) -> list[Rung]:
    """Return the rungs that are asked for; None: those of the default list.

    Raises:
        ValueError: a name is none of the ladder's.
    """
    known = [rung.name for rung in rungs]
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"rungs: {unknown[0]!r} is not one of {', '.join(known)}")
    return [rung for rung in rungs if (rung.by_default if names is None else rung.name in names)]


@dataclass
class Ladder:
    """Makes the rungs for one pipeline; programs and the choice of attention are made once and kept.

    Args:
        dtype, vae_dtype: what the network and the autoencoder are cast to.
        keep_precision: whether later rungs of a request stand on it (it is faster here, and close enough).
        folder: for ahead-of-time packages.
    """

    pipe: ImageAnimationPipeline
    dtype: torch.dtype
    vae_dtype: torch.dtype | None
    keep_precision: bool
    folder: Path
    _programs: dict[tuple[str, torch.dtype], list[Step]] = field(default_factory=dict)
    _backends: dict[tuple[bool, torch.dtype], dict[AttentionShape, Backend]] = field(default_factory=dict)
    _fastest: dict[torch.dtype, str] = field(default_factory=dict)
    _attention: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.on_gpu = self.pipe.device.type == "cuda"

    def rungs(self, measure: Measure, asked: Sequence[str] = ()) -> list[Rung]:
        """Return all rungs of one measure, from the plain model upwards.

        Args:
            asked: names of those to measure; `attention:BACKEND` makes a rung of its own, where the network is in it.
        """
        made = {"request": self._request, "pass": self._pass, "decode": self._decode, "distill": self._distill}
        self._attention = [name for name in asked if name.startswith(ATTENTION)]
        return made[measure]()

    def _named(self, name: str, measure: Measure, base: tuple[Apply, ...]) -> Rung:
        change = named(name)
        # A processor has no float8 units, and its memory is where blocks are offloaded to.
        here = self.on_gpu or name not in {"float8", "float8-weights", "offload"}
        more: dict[str, Any] = {"kept": False, "by_default": here, "program": change.compiles}
        return Rung(name, change.note, (change.apply,), measure, base, **more)

    def _request(self) -> list[Rung]:
        kept: list[Apply] = []
        made = [Rung("diffusers", "diffusers' own pipeline, two guidance branches at most", kept=False)]

        def rung(name: str, note: str, *own: Apply, keep: bool = True, **more: Any) -> None:
            made.append(Rung(name, note, own, base=tuple(kept), kept=keep, **more))
            if keep:
                kept.extend(own)

        rung("teacher", "as the checkpoint has it, float32, PyTorch eager")
        dropped = f"; does not pay here, so not kept, and measured on {_FEW_STEPS} steps"
        note = f"network in {dtype_name(self.dtype)}{'' if self.keep_precision else dropped}"
        few = None if self.keep_precision else _FEW_STEPS
        rung("precision", note, self.precision, keep=self.keep_precision, steps=few)
        rung("context", "context projected once a clip, not once a frame", _context)
        rung("prepare", "what is constant computed once a request (of U-Nets keys, values and picture)", prepare_once)
        made += [self._named(name, "request", tuple(kept)) for name in self._attention]
        gpu = "" if self.on_gpu else "; for GPUs, not kept here"
        rung("layout", f"convolutions in channels last{gpu}", _layout, keep=self.on_gpu)
        rung("attention", f"the fastest attention for each shape{gpu}", self.attention, keep=self.on_gpu)
        steps = min(STEPS, self.pipe.config.num_inference_steps)
        rung("solver", f"DPM-Solver++ on log-SNR, {steps} steps", partial(use_solver, steps=steps))
        cached, text = partial(cache_blocks, threshold=CACHE_THRESHOLD), "blocks of a transformer that hardly change"
        rung("block cache", f"{text} are reused between steps", cached, keep=False, uneven=True)
        rung("torchscript", "traced and frozen", self.torchscript, keep=False, program=True)
        made += [self._named(name, "request", tuple(kept)) for name in NAMED]
        text, both = "torch.compile of the whole network and the decoder", (self.compile, compile_decoder)
        rung("compile", text, *both, keep=False, program=True, by_default=self.on_gpu)
        rung("aot", "network compiled ahead of time, loaded from a file", self.aot, keep=False, program=True)
        student = partial(plan, steps=8, guidance_scale=1.0, image_guidance_scale=None)
        text = "speed of a student of 8 steps and one branch, with the teacher's weights"
        rung("8 x 1", text, student, keep=False, speed_only=True)
        return made

    def _pass(self) -> list[Rung]:
        plain = (self.precision,)
        ours = (*plain, prepare_once)
        laid_out = (*ours, _layout)
        compiled = (*laid_out, partial(self.attention, compiled=True))
        graphs, tuned = (partial(self.compile, mode=m) for m in ("reduce-overhead", "max-autotune-no-cudagraphs"))

        float8 = (NAMED["float8"].apply, compile_blocks)

        def rung(name: str, note: str, own: Apply, *base: Apply, **more: Any) -> Rung:
            return Rung(name, note, (own,), "pass", base, **more)

        program: dict[str, Any] = {"kept": False, "program": True, "by_default": self.on_gpu}
        if_asked: dict[str, Any] = {"kept": False, "by_default": False}
        return [
            rung(EXACT, "diffusers' network in float32, TF32 off", without_tf32),
            rung("diffusers", "diffusers' network, eager", self.precision),
            rung("diffusers + compile", "torch.compile of diffusers' network", compile_network, *plain, **program),
            rung(
                "ours eager", "what is constant in a request computed once, context once a clip", prepare_once, *plain
            ),
            *(self._named(name, "pass", ours) for name in self._attention),
            rung("ours channels-last", "and weights and activations with channels last", _layout, *ours),
            rung("ours attention", "and the fastest attention for each shape", self.attention, *laid_out),
            *(
                self._named(name, "pass", ours)
                for name, change in NAMED.items()
                if not (change.decodes or change.compiles)
            ),
            rung("ours compile blocks", "torch.compile of the repeated blocks", compile_blocks, *compiled, **program),
            Rung("ours float8 compiled", "torchao's float8 in compiled blocks", float8, "pass", ours, **program),
            rung(
                "ours compile", "torch.compile of it all, attention chosen for it", self.compile, *compiled, **program
            ),
            rung("ours compile graphs", "the same as CUDA graphs", graphs, *compiled, **program),
            rung("ours max-autotune", "the same, kernels tried out", tuned, *compiled, program=True, **if_asked),
            rung("ours aot", "compiled ahead of time, loaded from a file", self.aot, *compiled, **program),
        ]

    def _decode(self) -> list[Rung]:
        compiled = {"program": True, "by_default": self.on_gpu}
        return [
            Rung("decoder", "as the checkpoint has it, float32", (), "decode"),
            Rung("bfloat16", "in half precision", (_half_decoder,), "decode", kept=False),
            *(self._named(name, "decode", ()) for name, change in NAMED.items() if change.decodes),
            Rung("compile", "torch.compile of the decoder", (compile_decoder,), "decode", kept=False, **compiled),
        ]

    def _distill(self) -> list[Rung]:
        return [
            Rung(name, f"an update of one clip, {note}", (self.precision,), "distill", kept=False, settings=settings)
            for name, note, settings in TRAININGS
        ]

    def precision(self, pipe: ImageAnimationPipeline) -> Change:
        return set_precision(pipe, self.dtype, self.vae_dtype)

    def attention(self, pipe: ImageAnimationPipeline, *, compiled: bool = False) -> Change:
        dtype = pipe.network.dtype
        if not has_unet(pipe):  # a transformer's layers are alike: one back end serves them all
            if dtype not in self._fastest:
                self._fastest[dtype] = fastest_backend(pipe)
            return attention_backend(pipe, self._fastest[dtype])
        key = compiled, dtype
        if key not in self._backends:
            self._backends[key] = fastest_backends(pipe, compiled=compiled)
        return choose_attention(pipe.network, self._backends[key])

    def torchscript(self, pipe: ImageAnimationPipeline) -> Change:
        return self._program(pipe, "torchscript", partial(run_traced, pipe))

    def compile(self, pipe: ImageAnimationPipeline, mode: str | None = None) -> Change:
        return self._program(pipe, f"compile {mode}", partial(compile_whole, pipe, mode=mode))

    def aot(self, pipe: ImageAnimationPipeline) -> Change:
        def build(example: Example) -> Change:
            packages.build(pipe, [example], self.folder)
            return packages.load(pipe, self.folder)

        return self._program(pipe, "aot", build)

    def _program(self, pipe: ImageAnimationPipeline, name: str, build: Callable[[Example], Change]) -> Change:
        key = name, pipe.network.dtype
        if key not in self._programs:
            change = build(example_of(pipe))
            self._programs[key] = [one.run for one in prepared_denoisers(pipe)]
            change.undo()
        return put(pipe, self._programs[key], name, "built for the shapes of a default request")


TRAININGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("all weights", "all of them trained", {}),
    ("checkpointed", "activations computed again in the backward pass", {"gradient_checkpointing": True}),
    ("LoRA", "adapters of rank 16 trained", {"lora_rank": 16}),
    ("LoRA checkpointed", "the two together", {"lora_rank": 16, "gradient_checkpointing": True}),
)
"""What a student's update is measured with: name, note and the settings that each changes."""


def _layout(pipe: ImageAnimationPipeline) -> Change:
    return channels_last(pipe.network)


def _context(pipe: ImageAnimationPipeline) -> Change:
    return fold_context(pipe.network)


def _half_decoder(pipe: ImageAnimationPipeline) -> Change:
    if "vae" in pipe.family.float32_parts:
        raise NotApplicable(f"bfloat16: the {pipe.family.name} family keeps its autoencoder in float32")
    return set_precision(pipe, pipe.network.dtype, torch.bfloat16)


def without_tf32(pipe: ImageAnimationPipeline) -> Change:
    """Compute in float32 all the way: by default cuDNN's convolutions round their inputs to TF32, ten bits of mantissa.

    A pipeline on another device is left as it is.
    """
    parts: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn) if pipe.device.type == "cuda" else ()
    before = [part.allow_tf32 for part in parts]

    def allow(values: list[bool]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a newer way to say it cannot be mixed with this one
            for part, value in zip(parts, values, strict=True):
                part.allow_tf32 = value

    allow([False] * len(parts))
    return Change("tf32", "TF32 off", lambda: allow(before))


def plan(pipe: ImageAnimationPipeline, steps: int, **scales: float | None) -> Change:
    """Change the default number of steps and the guidance scales of a pipeline."""
    before = {name: pipe.config[name] for name in ("num_inference_steps", *scales)}
    pipe.register_to_config(num_inference_steps=steps, **scales)
    detail = f"{steps} x {branches_of(pipe)} passes"
    return Change("plan", detail, lambda: pipe.register_to_config(**before))


def branches_of(pipe: ImageAnimationPipeline) -> int:
    """Return how many guidance branches a call without arguments has."""
    return guidance_for(pipe.config, None, pipe.config.image_guidance_scale)[0].passes


def use_solver(pipe: ImageAnimationPipeline, steps: int = STEPS) -> Change:
    """Sample with DPM-Solver++ on a grid uniform in log-SNR, by default with `steps` steps.

    Raises:
        NotApplicable: the scheduler has noise levels that neither betas nor a shift give.
    """
    scheduler = pipe.scheduler
    try:
        solver = log_snr_solver(scheduler)
    except ValueError as error:
        raise NotApplicable(f"solver: {error}") from error
    planned = plan(pipe, steps)
    pipe.scheduler = solver

    def undo() -> None:
        pipe.scheduler = scheduler
        planned.undo()

    return Change("solver", f"DPM-Solver++ with {steps} steps", undo)
