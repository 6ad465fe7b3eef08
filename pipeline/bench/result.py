"""What a benchmark found: the figures of each rung, and the document that they stand in."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..optimise.precision import Trial
from .ladder import Measure

MOST_ERROR = 0.1
"""Relative error of one pass; bfloat16 has 8 bits, and hundreds of layers bring it to one or two hundredths."""


@dataclass
class RungResult:
    """Figures of one rung; those that it does not have are None.

    Attributes:
        name, note, kept: as `Rung` says.
        details: the changes that are in place, and the reasons of those that do not fit.
        median_s, times_s: seconds of what is measured; of a pass, each is the mean of several calls.
        speedup: against the rung of `REFERENCES` of the same run; of one pass, where `partial`.
        partial: whether fewer steps were measured than the rung would take, and compared with as many of the teacher's.
        steps, passes: steps of the solver, and calls of the network for one guidance branch, in a request.
        parts_s: seconds of each part of a request, the mean of the timed ones.
        pass_s: median step over its guidance branches.
        decode_share: of a request's time, what turns latents into frames.
        pass_speedup: against diffusers' own, of the same run.
        peak_memory_mb: most memory while it ran, of the GPU or of the process; None where it cannot be told.
        weights_mb: of the networks' weights between passes, where the network computes.
        flops: operations, counted (a multiplication and an addition are two).
        share_of_peak: flops a second over those of a large matrix product in the same precision.
        psnr_to_previous_db, psnr_to_teacher_db: of the output, from the same noise, against the rung that this one
            stands on and against the plain model.
        relative_error: of a pass against float32, norm of the difference over norm of the reference.
        wrong: whether that error is beyond what rounding explains (`MOST_ERROR`): its times are then worth nothing.
        trained_millions: parameters that an update changes.
        kernel_ms: of one profiled pass, all kernels added up.
        build_s: seconds until a program has run once, compiling included.
        skipped: why there are no figures.
    """

    name: str
    note: str
    kept: bool
    details: list[str] = field(default_factory=list)
    median_s: float | None = None
    times_s: list[float] = field(default_factory=list)
    speedup: float | None = None
    partial: bool = False
    steps: int | None = None
    passes: int | None = None
    parts_s: dict[str, float] = field(default_factory=dict)
    pass_s: float | None = None
    decode_share: float | None = None
    pass_speedup: float | None = None
    peak_memory_mb: float | None = None
    weights_mb: float | None = None
    flops: int | None = None
    share_of_peak: float | None = None
    psnr_to_previous_db: float | None = None
    psnr_to_teacher_db: float | None = None
    relative_error: float | None = None
    wrong: bool = False
    trained_millions: float | None = None
    kernel_ms: float | None = None
    build_s: float | None = None
    skipped: str | None = None


@dataclass
class BenchResult:
    """Content of `bench.json`, `pass.json` or `distill-update.json`.

    Attributes:
        part: what was measured.
        shape: branches of a pass, and frames, height and width of a clip in pixels.
        parameters: of the network.
        peak_flops: of a large matrix product on this machine, by precision, a second.
        trials: network and decoder in each precision, where requests were measured.
        profiles: Markdown, by name of the rung; each is written to a file of its own.
    """

    part: Measure
    preset: str
    model: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    shape: dict[str, int]
    parameters: int
    peak_flops: dict[str, float]
    trials: list[Trial]
    rungs: list[RungResult] = field(default_factory=list)
    profiles: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the profiles."""
        return {name: value for name, value in asdict(self).items() if name != "profiles"}
