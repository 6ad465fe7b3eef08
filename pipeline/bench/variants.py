"""What the benchmark of one U-Net pass compares: diffusers' own U-Net, and ours on each step of the way."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..model.families import Cond, cast_cond
from ..model.prompts import prompt_limit
from ..optimise.base import Change, NotApplicable

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline
    from ..optimise.attention import AttentionShape, Backend
    from ..optimise.prepared import StepModule

Run = Callable[[], Tensor]
"""One pass: the prediction, `(branches, 4, frames, h, w)`."""

REFERENCE = "diffusers fp32"
BASELINE = "diffusers"
PREPARED = "ours eager"


@dataclass(frozen=True)
class PassInputs:
    """What the U-Net is given: `(branches, 4, frames, h, w)` latents, a scalar timestep, conditions of each branch."""

    latents: Tensor
    timestep: Tensor
    cond: Cond

    def to(self, dtype: torch.dtype) -> PassInputs:
        """The same in another precision; timestep and frame rate stay whole numbers."""
        return PassInputs(self.latents.to(dtype), self.timestep, cast_cond(self.cond, dtype))


def pass_inputs(pipe: ImageAnimationPipeline, branches: int, seed: int = 0) -> PassInputs:
    """Random inputs of a default request's shapes in float32, the same on every device for one seed.

    Encoders have no part in it: their outputs are normed, and so are these numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    _, frames, height, width = pipe.family.latent_shape(pipe.parts, pipe.config.num_frames, *pipe.default_size)
    context = pipe.unet.config.cross_attention_dim

    def draw(*shape: int) -> Tensor:
        return torch.randn(branches, *shape, generator=generator).to(pipe.device)

    cond = {
        "image_latents": draw(4, frames, height, width),
        "image_embeds": draw(1, context),
        "text": draw(prompt_limit(pipe.tokenizer, pipe.text_encoder), context),
        "fps": torch.full((branches,), pipe.config.fps, device=pipe.device),
    }
    timestep = torch.tensor(pipe.scheduler.config.num_train_timesteps // 2, device=pipe.device)
    return PassInputs(draw(4, frames, height, width), timestep, cond)


@dataclass
class Stage:
    """Where a variant is built.

    Attributes:
        pipe: its U-Net is changed, and changed back when `stack` is closed.
        inputs: in float32.
        dtype: that the variant runs in.
        folder: for programs compiled ahead of time.
        graphs_mode: mode of `torch.compile` with CUDA graphs.
        backends: of attention, once measured: in eager PyTorch, and under the compiler; shared by the stages of a run.
        details: what was changed, for people.
    """

    pipe: ImageAnimationPipeline
    inputs: PassInputs
    dtype: torch.dtype
    folder: Path
    graphs_mode: str
    backends: dict[bool, dict[AttentionShape, Backend]] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)
    details: list[str] = field(default_factory=list)

    def apply(self, change: Change) -> None:
        """Keep a change until the stage is left."""
        self.stack.callback(change.undo)
        self.details.append(change.detail)


@dataclass(frozen=True)
class Variant:
    """A way to compute the pass.

    Attributes:
        name: as in the report, and for `--variants`.
        note: what it is, for people.
        build: puts the changes in place, and gives what runs a pass.
        prepared: whether what is the same at every step is left out of the pass (fewer operations).
        compiled: whether building takes minutes.
        by_default: measured where no names are given.
    """

    name: str
    note: str
    build: Callable[[Stage], Run]
    prepared: bool = True
    compiled: bool = False
    by_default: bool = True


def program_of(name: str) -> Variant:
    """A variant by its name."""
    return next(variant for variant in VARIANTS if variant.name == name)


# ------------------------------------------------------------------ diffusers


def _plain(stage: Stage, compiler: Callable[[nn.Module], Any] = lambda unet: unet) -> Run:
    stage.apply(_cast(stage.pipe.unet, stage.dtype))
    inputs = stage.inputs.to(stage.dtype)
    unet = compiler(stage.pipe.unet)
    return partial(stage.pipe.family.predict, unet, inputs.latents, inputs.timestep, inputs.cond)


def _full(stage: Stage) -> Run:
    if stage.pipe.device.type == "cuda":
        stage.apply(_without_tf32())
    return _plain(stage)


def _plain_compiled(stage: Stage) -> Run:
    stage.stack.callback(torch._dynamo.reset)  # noqa: SLF001  # the documented way to free what was compiled
    return _plain(stage, torch.compile)


def _cast(unet: nn.Module, dtype: torch.dtype) -> Change:
    """The U-Net alone in another precision; its weights as they were stay in memory."""
    before: list[tuple[Tensor, Tensor]] = []
    for tensor in [*unet.parameters(), *unet.buffers()]:
        if tensor.is_floating_point() and tensor.dtype != dtype:
            before.append((tensor, tensor.data))
            tensor.data = tensor.data.to(dtype)

    def undo() -> None:
        for tensor, data in before:
            tensor.data = data

    return Change("precision", f"U-Net in {str(dtype).removeprefix('torch.')}", undo)


def _without_tf32() -> Change:
    """Float32 all the way: by default cuDNN's convolutions round their inputs to TF32, ten bits of mantissa."""
    parts: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)

    def allow(values: list[bool]) -> list[bool]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a newer way to say it cannot be mixed with this one
            before = [part.allow_tf32 for part in parts]
            for part, value in zip(parts, values, strict=True):
                part.allow_tf32 = value
        return before

    before = allow([False, False])
    return Change("tf32", "TF32 off", lambda: cast(None, allow(before)))


# ------------------------------------------------------------------ ours

Improve = Callable[[Stage], Change]
"""A change to the U-Net of a stage whose step module is in place."""


def _step(stage: Stage) -> tuple[StepModule, tuple[Tensor, ...]]:
    """The step module as it is now, and its inputs."""
    from ..optimise.prepared import as_input
    from ..optimise.runtimes import prepared_denoiser

    inputs = stage.inputs.to(stage.dtype)
    step = prepared_denoiser(stage.pipe).module
    return step, (inputs.latents, as_input(inputs.timestep, inputs.latents), *step.prepare(inputs.cond))


def _layout(stage: Stage) -> Change:
    # Imported here as the others are: one that cannot be imported is one variant less.
    from ..optimise.layout import channels_last

    return channels_last(stage.pipe.unet)


def _attention(stage: Stage, *, compiled: bool = False, fuse_qkv: bool = False) -> Change:
    """The back end that is fastest for each shape, measured once a run in eager PyTorch or under the compiler."""
    from ..optimise.attention import attention_shapes, choose_attention, measure_attention

    if compiled not in stage.backends:
        step, inputs = _step(stage)
        shapes = attention_shapes(stage.pipe.unet, lambda: step(*inputs))
        stage.backends[compiled] = measure_attention(shapes, inputs[0].device, stage.dtype, compiled=compiled)
    backends = stage.backends[compiled]
    stage.details += [f"{s.queries} x {s.keys} x {s.head_dim} by {backend}" for s, backend in backends.items()]
    return choose_attention(stage.pipe.unet, backends, fuse_qkv=fuse_qkv)


def _improve(stage: Stage, *improvements: Improve, needed: Improve | None) -> tuple[StepModule, tuple[Tensor, ...]]:
    """Put the step module in place with improvements, and give its inputs.

    Args:
        needed: without which the variant makes no sense; others that do not fit are left out, which is noted.
    """
    from ..optimise.context import fold_context
    from ..optimise.prepared import prepare_once

    stage.apply(_cast(stage.pipe.unet, stage.dtype))
    stage.apply(fold_context(stage.pipe.unet))
    stage.apply(prepare_once(stage.pipe))
    for improve in improvements:
        try:
            stage.apply(improve(stage))
        except (ImportError, NotApplicable) as error:
            if improve is needed:
                raise
            stage.details.append(f"left out: {error}")
    return _step(stage)


def _ours(stage: Stage, *improvements: Improve) -> Run:
    step, inputs = _improve(stage, *improvements, needed=improvements[-1] if improvements else None)
    return partial(step, *inputs)


_attention_compiled: Improve = partial(_attention, compiled=True)


def _compiled(stage: Stage, mode: str | None = None) -> Run:
    step, inputs = _improve(stage, _layout, _attention_compiled, needed=None)
    stage.stack.callback(torch._dynamo.reset)  # noqa: SLF001  # the documented way to free what was compiled
    return partial(cast(Run, torch.compile(step, dynamic=False, mode=mode)), *inputs)


def _ahead_of_time(stage: Stage) -> Run:
    from ..optimise import packages
    from ..optimise.runtimes import Example, prepared_denoiser

    _, inputs = _improve(stage, _layout, _attention_compiled, needed=None)
    packages.build(stage.pipe, Example(tuple(tensor.contiguous() for tensor in inputs)), stage.folder)
    stage.apply(packages.load(stage.pipe, stage.folder))
    return partial(prepared_denoiser(stage.pipe).run, *inputs)


VARIANTS: tuple[Variant, ...] = (
    Variant(REFERENCE, "diffusers' U-Net in float32, TF32 off", _full, prepared=False),
    Variant(BASELINE, "diffusers' U-Net, eager", _plain, prepared=False),
    Variant("diffusers + compile", "torch.compile of diffusers' U-Net", _plain_compiled, prepared=False, compiled=True),
    Variant(PREPARED, "context projected once a clip; keys, values and picture computed once a request", _ours),
    Variant("ours channels-last", "and weights and activations with channels last", lambda s: _ours(s, _layout)),
    Variant("ours attention", "and the fastest attention for each shape", lambda s: _ours(s, _layout, _attention)),
    Variant(
        "ours fused qkv",
        "and queries, keys and values in one product",
        lambda s: _ours(s, _layout, partial(_attention, fuse_qkv=True)),
        by_default=False,
    ),
    Variant(
        "ours compile", "torch.compile of the whole step, attention chosen under the compiler", _compiled, compiled=True
    ),
    Variant("ours compile graphs", "the same as CUDA graphs", lambda s: _compiled(s, s.graphs_mode), compiled=True),
    Variant(
        "ours max-autotune",
        "`ours compile`, which also tries out kernels",
        lambda s: _compiled(s, "max-autotune-no-cudagraphs"),
        compiled=True,
        by_default=False,
    ),
    Variant("ours aot", "compiled ahead of time, loaded from a file", _ahead_of_time, compiled=True),
)
