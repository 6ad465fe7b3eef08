"""How a packaged model is made fast when it is loaded: each part that fits, and the reason of each that does not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import packages
from .attention import fastest_attention
from .base import Applied, NotApplicable
from .layout import channels_last
from .prepared import prepare_once
from .runtimes import ShapedProgram, compile_whole, example_of, find_compiler, prepared_denoiser, run_traced

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

RUNTIMES = ("eager", "torchscript", "compile", "aot")


@dataclass(frozen=True)
class Faster:
    """What a loaded model runs on.

    Attributes:
        program: computes the U-Net; None is PyTorch as it is.
        skipped: reasons of the parts that do not fit this model or machine.
    """

    program: ShapedProgram | None
    skipped: tuple[str, ...]


def tune(pipe: ImageAnimationPipeline, *, attention: bool = True, compiled: bool = False) -> Applied:
    """Apply what every runtime stands on: the constants of a request, and on a GPU its layout and attention.

    Args:
        attention: whether attention is chosen by shape; not for a program that brings its own.
        compiled: whether attention is chosen for a program that is compiled.
    """
    applied = Applied()
    applied.fits(lambda: prepare_once(pipe))
    if pipe.device.type == "cuda":
        applied.fits(lambda: channels_last(pipe.network))  # before a program is loaded, which was compiled for it
        if attention:
            applied.fits(lambda: fastest_attention(pipe, compiled=compiled))
    return applied


def speed_up(pipe: ImageAnimationPipeline, runtime: str, programs: Path) -> Faster:
    """Change a pipeline as its package says.

    Args:
        programs: folder of those that were compiled ahead of time.

    Raises:
        ValueError: there is no such runtime.
        ModelError: a program is missing or damaged.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime: {runtime!r} is not one of {', '.join(RUNTIMES)}")
    without_compiler = ""
    if runtime == "compile":
        try:
            find_compiler()
        except NotApplicable as error:
            runtime, without_compiler = "eager", str(error)
    applied = tune(pipe, attention=runtime != "aot", compiled=runtime == "compile")
    if without_compiler:
        applied.skipped.append(without_compiler)
    installed = applied.has("prepare") and runtime != "eager"
    if installed:  # all programs stand on what is prepared
        installed = applied.fits(
            {
                "torchscript": lambda: run_traced(pipe),
                "compile": lambda: compile_whole(pipe, example_of(pipe)),  # built in the warm-up
                "aot": lambda: packages.load(pipe, programs),
            }[runtime]
        )
        if runtime == "aot" and not installed and pipe.device.type == "cuda":
            applied.fits(lambda: fastest_attention(pipe))
    program = prepared_denoiser(pipe).run if installed else None
    assert program is None or isinstance(program, ShapedProgram)
    return Faster(program, tuple(applied.skipped))
