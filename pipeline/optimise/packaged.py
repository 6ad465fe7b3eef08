"""How a packaged model is made fast when it is loaded: each part that fits, and the reason of each that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import packages
from .base import NotApplicable
from .layout import channels_last
from .prepared import prepare_once
from .runtimes import ShapedProgram, compile_whole, example_of, find_compiler, install, prepared_denoiser, trace
from .tune import attention

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

RUNTIMES = ("eager", "torchscript", "compile", "aot")


@dataclass(frozen=True)
class Faster:
    """What a loaded model runs on.

    Attributes:
        program: that computes the U-Net; None is PyTorch as it is.
        skipped: reasons of the parts that do not fit this model or machine.
    """

    program: ShapedProgram | None
    skipped: tuple[str, ...]


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
    skipped: list[str] = []

    def fits(part: Callable[[], object]) -> bool:
        try:
            part()
        except NotApplicable as error:
            skipped.append(str(error))
            return False
        return True

    prepared = fits(lambda: prepare_once(pipe))
    if pipe.device.type == "cuda":
        fits(lambda: channels_last(pipe.network))  # before a program is loaded, which was compiled for it
    # All else stands on what is prepared.
    ready = prepared and _install(pipe, runtime, programs, fits)
    program = prepared_denoiser(pipe).run if ready else None
    assert program is None or isinstance(program, ShapedProgram)
    return Faster(program, tuple(skipped))


def _install(
    pipe: ImageAnimationPipeline, runtime: str, programs: Path, fits: Callable[[Callable[[], object]], bool]
) -> bool:
    """Put the runtime's program in place, and choose attention where it brings none of its own."""

    def tune_attention(*, compiled: bool = False) -> None:
        if pipe.device.type == "cuda":
            fits(lambda: attention(pipe, compiled=compiled))

    def traced() -> None:
        example = example_of(pipe)
        install(pipe, trace(pipe, example), example, "torchscript", "traced when loaded")

    if runtime == "aot":
        loaded = fits(lambda: packages.load(pipe, programs))
        if not loaded:
            tune_attention()
        return loaded
    if runtime == "compile":
        has_compiler = fits(find_compiler)
        tune_attention(compiled=has_compiler)
        return has_compiler and fits(lambda: compile_whole(pipe, example_of(pipe)))  # built in the warm-up
    tune_attention()
    return runtime == "torchscript" and fits(traced)
