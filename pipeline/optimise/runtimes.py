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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from torch import Tensor, nn

from ..errors import first_line
from ..model.example import first_pass
from .base import Change, NotApplicable
from .prepared import as_input, prepared_denoisers, runs_program
from .step_modules import Step, StepModule

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

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the latents."""
        return self.inputs[0].dtype


def shapes_of(inputs: tuple[Tensor, ...]) -> Shapes:
    """Return the shapes of a program's inputs, in order."""
    return tuple(tuple(tensor.shape) for tensor in inputs)


class ShapedProgram:
    """Programs for some sets of shapes, and the plain module for all others.

    Attributes:
        misses: calls that no program fitted.
    """

    def __init__(self, programs: Mapping[Shapes, Step], dtype: torch.dtype, plain: StepModule, name: str) -> None:
        self.programs, self.dtype, self.plain, self.name = programs, dtype, plain, name
        self.misses = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        program = self.programs.get(shapes_of(inputs))
        if program is not None and inputs[0].dtype == self.dtype:
            # A program of AOTInductor trusts that strides are those it was built for, and does not look.
            return program(*(tensor.contiguous() for tensor in inputs))
        self.misses += 1
        if self.misses == 1:
            built_for = " or ".join("x".join(map(str, shapes[0])) for shapes in self.programs)
            logger.warning(
                "the %s program was built for latents %s; %s runs without it",
                self.name,
                built_for,
                "x".join(map(str, inputs[0].shape)),
            )
        return cast(Tensor, self.plain(*inputs))


def example_of(pipe: ImageAnimationPipeline, **given: Any) -> Example:
    """Return inputs of the step module as a default request gives them; of two networks they are alike.

    Args:
        given: arguments of the pipeline, where the request is not to be a default one.
    """
    latents, timestep, cond = first_pass(pipe, **given)
    with torch.no_grad():
        prepared = [one.module.prepare(cond) for one in prepared_denoisers(pipe)]
    inputs = (latents, as_input(timestep, latents), *prepared[0])
    return Example(tuple(tensor.contiguous() for tensor in inputs))


def install(
    pipe: ImageAnimationPipeline,
    programs: Mapping[Shapes, Callable[[StepModule], Step]],
    dtype: torch.dtype,
    name: str,
    detail: str,
) -> Change:
    """Let programs run the steps whose shapes they were built for.

    Args:
        programs: by the shapes of their inputs, what gives the program of a network's step module.
    """
    runs = [
        ShapedProgram({shapes: make(one.module) for shapes, make in programs.items()}, dtype, one.module, name)
        for one in prepared_denoisers(pipe)
    ]
    return put(pipe, runs, name, detail)


def put(pipe: ImageAnimationPipeline, runs: Sequence[Step], name: str, detail: str) -> Change:
    """Let what is given run the steps, one for each network."""
    denoisers = prepared_denoisers(pipe)
    before = [one.run for one in denoisers]

    def set_to(steps: Sequence[Step]) -> None:
        for one, step in zip(denoisers, steps, strict=True):
            one.run = step

    set_to(runs)
    return Change(name, detail, lambda: set_to(before))


@torch.no_grad()
def trace(module: StepModule, example: Example) -> Step:
    """Return a step module traced with the example's inputs and frozen, its weights now constants."""
    with warnings.catch_warnings():
        # The tracer warns of every size that it takes for a constant, which is what is wanted here, and
        # of its own deprecation.
        warnings.simplefilter("ignore")
        try:
            traced = torch.jit.trace(module, example.inputs, check_trace=False)
            return cast(Step, torch.jit.freeze(traced))
        except (RuntimeError, TypeError, ValueError) as error:
            raise NotApplicable(f"torchscript: the network cannot be traced: {first_line(error)}") from error


def run_traced(pipe: ImageAnimationPipeline, example: Example | None = None) -> Change:
    """Let TorchScript run the steps of a default request."""
    found = example or example_of(pipe)
    programs = {found.shapes: lambda module: trace(module, found)}
    return install(pipe, programs, found.dtype, "torchscript", "traced and frozen")


def compile_blocks(pipe: ImageAnimationPipeline, **options: Any) -> Change:
    """Compile the repeated blocks of all networks with `torch.compile`: those of one kind and shape share a program.

    Transformers name their blocks themselves (`_repeated_blocks`, which diffusers' `compile_repeated_blocks` reads).
    Compilation happens at the first call.
    """
    if runs_program(pipe):
        raise NotApplicable("compile: a traced or compiled program runs the network already")
    blocks = [block for network in pipe.networks for block in repeated_blocks(network)]
    if not blocks:
        raise NotApplicable(f"compile: {type(pipe.network).__name__} has no repeated blocks")
    # All blocks of a kind are one function to the compiler, which gives up on a function after eight
    # shapes (`torch._dynamo.config.recompile_limit`); a U-Net's ResNets alone have more.
    undo = _compile(blocks, recompile_limit=max(8, len(blocks)), **options)

    return Change("compile", f"{len(blocks)} repeated blocks compiled", undo)


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks that a network is made of many times over."""
    named = getattr(network, "_repeated_blocks", None) or ()
    if not named and isinstance(layers := getattr(network, "transformer_blocks", None), nn.ModuleList):
        return list(layers)  # such as CogVideoX's, which diffusers does not name
    return [m for m in network.modules() if isinstance(m, REPEATED) or type(m).__name__ in named]


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
    programs = {example.shapes: lambda module: cast(Step, torch.compile(module, dynamic=False, **options))}
    return install(pipe, programs, example.dtype, "compile", "whole network compiled")


def compile_network(pipe: ImageAnimationPipeline, **options: Any) -> Change:
    """Compile the network as diffusers has it."""
    undo = _compile(list(pipe.networks), **options)
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
