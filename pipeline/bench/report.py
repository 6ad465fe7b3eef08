"""What people read of a benchmark: a table for the terminal, a page, a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import StillmotionError
from ..writing import write_atomically
from .measure import BenchResult

_COLUMNS = (
    "rung",
    "passes",
    "request",
    "speed-up",
    "one pass",
    "against diffusers",
    "GFLOP",
    "of peak",
    "memory",
    "PSNR to the rung before",
    "to the teacher",
    "build",
)


def table(rungs: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for a terminal, one a rung."""
    lines = [
        f"{'rung':12} {'passes':>6} {'request':>10} {'speed-up':>9} {'one pass':>10} {'memory':>9}  PSNR to teacher"
    ]
    for r in rungs:
        if r["skipped"] is not None:
            lines.append(f"{r['name']:12} not applied: {r['skipped']}")
            continue
        pass_ms = None if r["pass_s"] is None else r["pass_s"] * 1000
        lines.append(
            f"{r['name']:12} {r['passes']:>6} {r['median_s']:>8.3f} s {_cell(r['speedup'], '{:.2f}x'):>9} "
            f"{_cell(pass_ms, '{:.1f} ms'):>10} {_cell(r['peak_memory_mb'], '{:.0f} MB'):>9}  "
            f"{_cell(r['psnr_to_teacher_db'], '{:.1f} dB')}"
        )
    return lines


def markdown(result: BenchResult) -> str:
    """A table of the rungs, with the command and the machine."""
    shape, computer = result.shape, result.machine
    software = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    lines = [
        f"# Ladder: {result.model}, {shape['frames']} frames of {shape['width']} x {shape['height']}",
        "",
        f"`{result.command}`",
        "",
        f"{computer['processor']}; accelerator {computer['accelerator']}; {computer['threads']} threads; {software}",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---" + "|--:" * (len(_COLUMNS) - 1) + "|",
    ]
    for r in result.rungs:
        if r.skipped is not None:
            lines.append(f"| {r.name} | not applied: {r.skipped} |" + " |" * (len(_COLUMNS) - 2))
            continue
        cells = [
            r.name,
            str(r.passes),
            f"{r.median_s:.3f} s",
            _cell(r.speedup, "{:.2f}x"),
            _cell(None if r.pass_s is None else r.pass_s * 1000, "{:.1f} ms"),
            _cell(r.pass_speedup, "{:.2f}x"),
            _cell(None if r.flops is None else r.flops / 1e9, "{:.1f}"),
            _cell(None if r.share_of_peak is None else 100 * r.share_of_peak, "{:.0f} %"),
            _cell(r.peak_memory_mb, "{:.0f} MB"),
            _cell(r.psnr_to_previous_db, "{:.1f} dB"),
            _cell(r.psnr_to_teacher_db, "{:.1f} dB"),
            _cell(r.build_s, "{:.1f} s"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *[f"- {r.name}: {r.note}" for r in result.rungs], ""])


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def write(result: BenchResult, folder: Path) -> list[Path]:
    """Write `bench.json`, `bench.md` and `bench.png`.

    Raises:
        StillmotionError: the folder cannot be written.
    """
    from ..runs.plots import plot_ladder

    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"bench.{suffix}" for suffix in ("json", "md", "png")]
        write_atomically(paths[0], json.dumps(result.to_dict(), indent=2) + "\n")
        write_atomically(paths[1], markdown(result))
        plot_ladder(result.rungs).save(paths[2])
    except OSError as error:
        raise StillmotionError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return paths
