"""Plots for the report, as pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from ..judge.evaluate import EvaluationResult
    from .convergence import ConvergencePoint
    from .result import RungResult

_INK, _SOFT, _ACCENT, _GOOD = "#1d1f24", "#9aa0aa", "#c2412d", "#2f7d4f"


class _Canvas:
    """A matplotlib figure, and the picture that it becomes."""

    def __init__(self, figure: Any, axes: Any) -> None:
        self.figure, self.axes = figure, axes
        self.picture: Image.Image | None = None


@contextmanager
def _canvas(width: float, height: float) -> Iterator[_Canvas]:
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and wants a display

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    canvas = _Canvas(figure, figure.add_subplot())
    canvas.axes.spines[["top", "right"]].set_visible(False)
    yield canvas
    data = io.BytesIO()
    figure.savefig(data, format="png")
    canvas.picture = Image.open(data).convert("RGB")


def _finished(canvas: _Canvas) -> Image.Image:
    assert canvas.picture is not None
    return canvas.picture


def plot_ladder(rungs: Sequence[RungResult]) -> Image.Image:
    """Draw the seconds of a request on each rung, as bars; those that later rungs stand on in colour."""
    shown = [r for r in rungs if r.median_s is not None and not r.partial]
    with _canvas(8.5, 0.9 + 0.36 * len(shown)) as canvas:
        axes = canvas.axes
        seconds = [r.median_s or 0.0 for r in shown]
        axes.barh([r.name for r in shown], seconds, color=[_ACCENT if r.kept else _SOFT for r in shown], height=0.62)
        for k, r in enumerate(shown):
            ratio = f"  {r.speedup:.2f}x" if r.speedup is not None else ""
            axes.text(seconds[k], k, f" {seconds[k]:.2f} s{ratio}", va="center", color=_INK, fontsize=9)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.2 * max(seconds))
        axes.set_xlabel("seconds a request (red: later rungs stand on it)")
    return _finished(canvas)


def plot_convergence(points: Sequence[ConvergencePoint]) -> Image.Image:
    """Error of the latents against steps, a line for each sampler."""
    colours = (_SOFT, _INK, _ACCENT, _GOOD)
    with _canvas(7.5, 4.2) as canvas:
        axes = canvas.axes
        for colour, name in zip(colours, dict.fromkeys(p.sampler for p in points), strict=False):
            own = [p for p in points if p.sampler == name]
            axes.plot([p.steps for p in own], [p.rmse for p in own], "o-", color=colour, label=name)
        ticks = sorted({p.steps for p in points})
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.xaxis.minorticks_off()  # the error's own stay: it spans less than a decade
        axes.set_xlabel("steps")
        axes.set_ylabel("error of the latents (RMSE)")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    return _finished(canvas)


def plot_losses(losses: Mapping[str, Sequence[float]]) -> Image.Image:
    """Losses of students by update: points, and a line of their running mean over a tenth of the run."""
    with _canvas(7.5, 3.8) as canvas:
        axes = canvas.axes
        for k, (name, values) in enumerate(losses.items()):
            colour = (_ACCENT, _INK, _GOOD, _SOFT)[k % 4]
            updates = range(1, len(values) + 1)
            window = max(1, len(values) // 10)
            means = [sum(values[max(0, n - window) : n]) / min(n, window) for n in updates]
            if len(losses) == 1:
                axes.plot(updates, values, ".", color=_SOFT, markersize=3)
            axes.plot(updates, means, "-", color=colour, label=name)
        axes.set_yscale("log")
        axes.set_xlabel("updates")
        axes.set_ylabel("loss")
        axes.grid(alpha=0.25)
        if len(losses) > 1:
            axes.legend(frameon=False)
    return _finished(canvas)


def plot_students(students: Mapping[str, tuple[EvaluationResult, EvaluationResult]]) -> Image.Image:
    """Draw the PSNR to the teacher of each student, and in grey of the undistilled teacher with as many passes."""
    with _canvas(7.5, 0.9 + 0.5 * len(students)) as canvas:
        axes = canvas.axes
        for k, (student, undistilled) in enumerate(students.values()):
            for offset, one, colour in ((-0.17, student, _ACCENT), (0.17, undistilled, _SOFT)):
                value = one.psnr_to_teacher_db or 0.0
                axes.barh(k + offset, value, height=0.3, color=colour)
                words = f" {value:.1f} dB, motion {100 * one.motion_accuracy:.0f} %"
                axes.text(value, k + offset, words, va="center", color=_INK, fontsize=9)
        axes.set_yticks(range(len(students)), list(students))
        axes.invert_yaxis()
        axes.set_xlim(0, 1.35 * max(s.psnr_to_teacher_db or 1.0 for pair in students.values() for s in pair))
        axes.set_xlabel("PSNR to the teacher in full, dB (grey: the teacher with as few passes)")
    return _finished(canvas)
