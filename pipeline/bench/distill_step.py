"""`bench --part distill`: what one update of a student costs in time and memory."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import first_line
from ..machine import PeakMemory
from .timing import wait

if TYPE_CHECKING:
    from ..distill.trainer import DistillSettings
    from ..model.animation import ImageAnimationPipeline

Quiet = Callable[[], AbstractContextManager[object]]

WAYS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "checkpointed": {"gradient_checkpointing": True},
    "LoRA": {"lora_rank": 16},
    "LoRA checkpointed": {"lora_rank": 16, "gradient_checkpointing": True},
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
            result.skipped = first_line(error)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tell(f"{name}: {result.skipped or f'{result.update_s:.2f} s an update, {result.peak_memory_mb} MB'}")
    return results


def run_distill(
    preset: str,
    model: str | None,
    names: Sequence[str] | None,
    dtype: str | None,
    out: Path | None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Measure and write updates of a preset's model, as `bench --part distill` does.

    Args:
        names: of `WAYS`; None: all.
        dtype: of the teacher and of the student's passes; None: bfloat16 on a GPU, float32 on a CPU.
        out: folder for `distill-update.json`.

    Raises:
        ValueError: an unknown way.
        StillmotionError: the model cannot be opened.
    """
    import json
    import tempfile

    from ..distill.trainer import DistillSettings
    from ..machine import machine, versions
    from ..optimise.precision import dtype_of, set_precision
    from .presets import open_preset

    if unknown := [name for name in names or () if name not in WAYS]:
        raise ValueError(f"variants: {unknown[0]!r} is not one of {', '.join(WAYS)}")
    pipe, name = open_preset(preset, model)
    wanted = dtype or ("bfloat16" if pipe.device.type == "cuda" else "float32")
    set_precision(pipe, dtype_of(wanted))
    mixed = {"bfloat16": "bf16", "float16": "fp16"}.get(wanted, "no")
    with tempfile.TemporaryDirectory() as folder:
        steps = math.gcd(8, pipe.config.num_inference_steps)  # 8 for published plans of 32 and 48
        settings = DistillSettings(student_steps=steps, mixed_precision=mixed)
        updates = bench_distill(pipe, settings, Path(folder), names, tell=tell)
    result = {
        "model": name,
        "machine": machine(),
        "versions": versions(),
        "updates": [update.to_dict() for update in updates],
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "distill-update.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def distill_lines(updates: Sequence[dict[str, Any]]) -> list[str]:
    """A line each, for people."""
    return [
        f"{u['name']:28} {u['skipped'] or str(u['update_s']) + ' s an update, ' + str(u['peak_memory_mb']) + ' MB'}"
        for u in updates
    ]
