"""What people read of a benchmark: a table for the terminal, a page, a plot, profiles."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..pages import page
from ..writing import write_atomically, write_beside
from .result import BenchResult


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value >= 0.5 else f"{1000 * value:.2f} ms"


def _digits(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


_COLUMNS: tuple[tuple[str, str, Any], ...] = (
    ("rung", "name", str),
    ("passes", "passes", str),
    ("time", "median_s", _seconds),
    ("speed-up", "speedup", "{:.2f}x".format),
    ("one pass", "pass_s", _seconds),
    ("vs diffusers", "pass_speedup", "{:.2f}x".format),
    ("decoding", "decode_share", "{:.0%}".format),
    ("GFLOP", "flops", lambda flops: _digits(flops / 1e9)),
    ("of peak", "share_of_peak", "{:.1%}".format),
    ("kernels", "kernel_ms", "{:.2f} ms".format),
    ("memory", "peak_memory_mb", "{:.0f} MB".format),
    ("weights", "weights_mb", lambda held: f"{_digits(held)} MB"),
    ("PSNR to previous", "psnr_to_previous_db", "{:.1f} dB".format),
    ("to plain", "psnr_to_teacher_db", "{:.1f} dB".format),
    ("relative error", "relative_error", "{:.1e}".format),
    ("trained", "trained_millions", "{:.1f} million".format),
    ("build", "build_s", "{:.1f} s".format),
)
"""Header, key of a rung, and how its value is written; a column without values is left out."""

_STEMS = {"request": "bench", "pass": "pass", "decode": "decode", "distill": "distill-update"}


def _rows(rungs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return header and cells of the rungs that have figures."""
    measured = [rung for rung in rungs if rung["skipped"] is None]
    columns = [column for column in _COLUMNS if any(rung[column[1]] is not None for rung in measured)]
    rows = [[header for header, _, _ in columns]]
    for rung in measured:
        cells = ["–" if rung[key] is None else form(rung[key]) for _, key, form in columns]
        rows.append([*cells[:-1], f"{cells[-1]} WRONG OUTPUT"] if rung["wrong"] else cells)
    return rows


def table(rungs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines for a terminal, one a rung, then one for each that does not apply."""
    rows = _rows(rungs)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [*(line.rstrip() for line in lines), *_reasons(rungs)]


def _reasons(rungs: Sequence[Mapping[str, Any]]) -> list[str]:
    skipped = [(rung["name"], rung["skipped"]) for rung in rungs if rung["skipped"] is not None]
    return [f"{name}: not applied: {why.removeprefix(f'{name}: ')}" for name, why in skipped]


def markdown(result: BenchResult) -> str:
    """Return a table of the rungs, with the command and the machine."""
    rungs = result.to_dict()["rungs"]
    header, *rows = _rows(rungs)
    return page("bench.md.j2", result=result, header=header, rows=rows, reasons=_reasons(rungs))


def write(result: BenchResult, folder: Path) -> list[Path]:
    """Write JSON and Markdown, the plot of whole requests, and a profile for each pass, over what was there.

    Raises:
        StillmotionError: the folder cannot be written.
    """
    from .plots import plot_ladder

    stem = _STEMS[result.part]
    texts = {f"{stem}.json": json.dumps(result.to_dict(), indent=2) + "\n", f"{stem}.md": markdown(result)}
    for name, text in result.profiles.items():
        texts["profile-" + re.sub(r"[^a-z0-9]+", "-", name.lower()) + ".md"] = text
    for name, text in texts.items():
        write_atomically(folder / name, text)  # a run on a rented machine may be cut short: never half a file
    paths = [folder / name for name in texts]
    if result.part == "request" and any(rung.median_s is not None and not rung.partial for rung in result.rungs):
        paths.append(folder / f"{stem}.png")
        write_beside(paths[-1], lambda partial: plot_ladder(result.rungs).save(partial, format="png"))
    return paths
