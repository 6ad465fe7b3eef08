"""Runtimes: how the step module is executed.

- eager: PyTorch calls each operation. Nothing is built.
- torchscript: traced and frozen. The article's launch path; PyTorch has since deprecated TorchScript
  in favour of the next two, and it is kept as a comparison.
- compile: `torch.compile`, of the repeated blocks (built once a kind and shape) or of the whole.
- aot: exported and compiled ahead of time (`torch.export`, AOTInductor) into a file that another
  process loads in a blink; see `pipeline.optimise.packages`.

A program knows the shapes it was built for. `ShapedProgram` runs it for those and the plain module
for all others, so that a request of fewer frames is slower and not refused.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from torch import Tensor, nn

from ..errors import first_line
from ..model.example import first_pass
from .base import Change, NotApplicable
from .prepared import PreparedDenoiser, Step, StepModule, as_input

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

logger = logging.getLogger(__name__)

REPEATED = (BasicTransformerBlock, ResnetBlock2D, TemporalConvLayer)
"""Blocks that a U-Net is made of many times over."""

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Example:
    """Inputs of the step module, with the shapes of a default request of one clip."""

    inputs: tuple[Tensor, ...]

    @property
    def shapes(self) -> Shapes:
        return shapes_of(self.inputs)


def shapes_of(inputs: tuple[Tensor, ...]) -> Shapes:
    """Return the shapes of a program's inputs, in order."""
    return tuple(tuple(tensor.shape) for tensor in inputs)


class ShapedProgram:
    """A program for one set of shapes, and the plain module for all others.

    Attributes:
        misses: calls that the program did not fit.
    """

    def __init__(self, program: Step, plain: StepModule, example: Example, name: str) -> None:
        self.program, self.plain, self.name = program, plain, name
        self.shapes = example.shapes
        self.dtype = example.inputs[0].dtype
        self.misses = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        if shapes_of(inputs) == self.shapes and inputs[0].dtype == self.dtype:
            # A program of AOTInductor trusts that strides are those it was built for, and does not look.
            return self.program(*(tensor.contiguous() for tensor in inputs))
        self.misses += 1
        if self.misses == 1:
            logger.warning(
                "the %s program was built for latents %s; %s runs without it",
                self.name,
                "x".join(map(str, self.shapes[0])),
                "x".join(map(str, inputs[0].shape)),
            )
        return cast(Tensor, self.plain(*inputs))


def example_of(pipe: ImageAnimationPipeline) -> Example:
    """Return inputs of the step module as a default request gives them."""
    module = prepared_denoiser(pipe).module
    latents, timestep, cond = first_pass(pipe)
    with torch.no_grad():
        inputs = (latents, as_input(timestep, latents), *module.prepare(cond))
    return Example(tuple(tensor.contiguous() for tensor in inputs))


def prepared_denoiser(pipe: ImageAnimationPipeline) -> PreparedDenoiser:
    """Return the pipeline's denoiser, which must be the one of `prepare_once`."""
    if not isinstance(pipe.denoiser, PreparedDenoiser):
        raise NotApplicable(f"runtime: the denoiser is a {type(pipe.denoiser).__name__}; apply prepare_once first")
    return pipe.denoiser


def install(pipe: ImageAnimationPipeline, program: Step, example: Example, name: str, detail: str) -> Change:
    """Let a program run the steps whose shapes it was built for."""
    denoiser = prepared_denoiser(pipe)
    before = denoiser.run
    denoiser.run = ShapedProgram(program, denoiser.module, example, name)

    def undo() -> None:
        denoiser.run = before

    return Change(name, detail, undo)


@torch.no_grad()
def trace(pipe: ImageAnimationPipeline, example: Example) -> Step:
    """Return the step module traced with the example's inputs and frozen, its weights now constants."""
    module = prepared_denoiser(pipe).module
    with warnings.catch_warnings():
        # The tracer warns of every size that it takes for a constant, which is what is wanted here, and
        # of its own deprecation.
        warnings.simplefilter("ignore")
        try:
            traced = torch.jit.trace(module, example.inputs, check_trace=False)
            return cast(Step, torch.jit.freeze(traced))
        except (RuntimeError, TypeError, ValueError) as error:
            raise NotApplicable(f"torchscript: unet: cannot be traced: {first_line(error)}") from error


def run_traced(pipe: ImageAnimationPipeline) -> Change:
    """Let TorchScript run the steps of a default request."""
    example = example_of(pipe)
    return install(pipe, trace(pipe, example), example, "torchscript", "traced and frozen")


def compile_blocks(pipe: ImageAnimationPipeline, **options: Any) -> Change:
    """Compile the repeated blocks of the network with `torch.compile`: those of one kind and shape share a program.

    Transformers name their blocks themselves (diffusers' `_repeated_blocks`). Compilation happens at the first call.
    """
    prepared_denoiser(pipe)
    named = getattr(pipe.network, "_repeated_blocks", None) or ()
    blocks = [m for m in pipe.network.modules() if isinstance(m, REPEATED) or type(m).__name__ in named]
    if not blocks:
        raise NotApplicable(f"compile: {type(pipe.network).__name__} has no repeated blocks")
    # All blocks of a kind are one function to the compiler, which gives up on a function after eight
    # shapes (`torch._dynamo.config.recompile_limit`); a U-Net's ResNets alone have more.
    undo = _compile(blocks, recompile_limit=max(8, len(blocks)), **options)

    return Change("compile", f"{len(blocks)} repeated blocks compiled", undo)


def find_compiler() -> None:
    """Check that what `torch.compile` writes can be compiled here, which it finds out at the first call only.

    Its kernels are C++ on a CPU; on a GPU Triton compiles their launchers.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise NotApplicable("compile: there is no C++ compiler here") from error


def compile_whole(pipe: ImageAnimationPipeline, example: Example, **options: Any) -> Change:
    """Compile the whole step module: slower to build, and free to fuse across blocks."""
    module = prepared_denoiser(pipe).module
    return install(pipe, torch.compile(module, dynamic=False, **options), example, "compile", "whole U-Net compiled")


def compile_network(pipe: ImageAnimationPipeline, **options: Any) -> Change:
    """Compile the network as diffusers has it."""
    undo = _compile([pipe.network], **options)
    return Change("compile network", f"{type(pipe.network).__name__} compiled", undo)


def compile_decoder(pipe: ImageAnimationPipeline, **options: Any) -> Change:
    """Compile the autoencoder's decoder."""
    undo = _compile([pipe.vae.decoder], **options)
    return Change("compile decoder", "decoder of the autoencoder compiled", undo)


def _compile(modules: list[nn.Module], **options: Any) -> Callable[[], None]:
    """Compile each of the modules; return what takes it back."""
    # nn.Module.compile has no way back of its own.
    before = [module._compiled_call_impl for module in modules]  # noqa: SLF001
    for module in modules:
        module.compile(dynamic=False, **options)

    def undo() -> None:
        for module, call in zip(modules, before, strict=True):
            module._compiled_call_impl = call  # noqa: SLF001

    return undo


Runtime = Literal["eager", "torchscript", "compile", "aot"]
