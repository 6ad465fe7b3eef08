"""`bench --part distill`: what one update of a student costs in time and memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..machine import PeakMemory
from .timing import wait

if TYPE_CHECKING:
    from ..animation import ImageAnimationPipeline
    from ..distill.trainer import DistillSettings

Quiet = Callable[[], AbstractContextManager[object]]

WAYS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "all weights, checkpointed": {"gradient_checkpointing": True},
    "LoRA": {"lora_rank": 16},
    "LoRA, checkpointed": {"lora_rank": 16, "gradient_checkpointing": True},
}
"""Ways to train, and the settings that each is."""


@dataclass
class StepResult:
    """Figures of one way to train; an update is of one batch.

    Attributes:
        name: of `WAYS`.
        trained_millions: parameters that are trained.
        update_s, times_s: median, and each timed update.
        peak_memory_mb: most memory during an update, of the GPU or of the process.
        skipped: why there are no figures.
    """

    name: str
    batch: int
    trained_millions: float | None = None
    update_s: float | None = None
    times_s: list[float] = field(default_factory=list)
    peak_memory_mb: float | None = None
    skipped: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def bench_distill(
    pipe: ImageAnimationPipeline,
    settings: DistillSettings,
    folder: Path,
    ways: Sequence[str] | None = None,
    batch: int = 1,
    updates: int = 3,
    quiet: Quiet = nullcontext,
    tell: Callable[[str], None] = lambda _text: None,
) -> list[StepResult]:
    """Time updates of a student, each way from the teacher's weights.

    Args:
        pipe: the teacher, in its precision.
        settings: of the ways, but for what `WAYS` sets.
        ways: names; None: all.
        batch: clips an update.
        quiet: wraps the updates.

    Raises:
        ValueError: an unknown way.
    """
    from ..distill.data import GeneratedSource
    from ..distill.trainer import Distiller

    if unknown := [name for name in ways or () if name not in WAYS]:
        raise ValueError(f"ways: {unknown[0]!r} is not one of {', '.join(WAYS)}")
    size = min(*pipe.default_size, 128)  # of the pictures, which are scaled to what the teacher wants
    source = GeneratedSource(size, 2, batch)
    examples = source[0]
    results = []
    for name in ways or WAYS:
        result = StepResult(name, batch)
        results.append(result)
        try:
            distiller = Distiller(pipe, source, replace(settings, **WAYS[name]), folder)
            result.trained_millions = round(sum(p.numel() for p in distiller.trained) / 1e6, 3)
            with quiet(), PeakMemory() as memory:
                for number in range(updates + 1):  # the first makes the optimizer's state
                    began = time.perf_counter()
                    distiller.update(examples, number)
                    wait(pipe.device)
                    if number:
                        result.times_s.append(round(time.perf_counter() - began, 4))
            result.update_s = round(statistics.median(result.times_s), 4)
            result.peak_memory_mb = None if memory.peak_mb is None else round(memory.peak_mb, 1)
            distiller.close()
            del distiller
        except (RuntimeError, ImportError) as error:  # out of memory, or no peft
            result.skipped = str(error).splitlines()[0]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tell(f"{name}: {result.skipped or f'{result.update_s:.2f} s an update, {result.peak_memory_mb} MB'}")
    return results
