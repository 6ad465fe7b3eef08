"""What people read of the benchmark of one U-Net pass: a table for the terminal, a page, and the profiles."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import StillmotionError
from . import profiling
from .unet_pass import PassResult

_COLUMNS = (
    "variant",
    "precision",
    "one pass",
    "against diffusers",
    "TFLOP",
    "TFLOP/s",
    "of peak",
    "kernels",
    "memory",
    "of the pass",
    "relative error",
    "build",
)


def table(variants: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for a terminal, one a variant."""
    lines = [f"{'variant':20} {'one pass':>12} {'against diffusers':>18} {'of peak':>8} {'error':>9} {'build':>8}"]
    for v in variants:
        if v["skipped"] is not None:
            lines.append(f"{v['name']:20} skipped: {v['skipped']}")
            continue
        lines.append(
            f"{v['name']:20} {v['pass_ms']:>9.2f} ms {v['ratio_to_diffusers']:>17.2f}x "
            f"{100 * v['share_of_peak']:>6.1f} % {v['relative_error']:>9.1e} {v['build_s']:>6.1f} s"
            f"{'  WRONG OUTPUT' if v['wrong'] else ''}"
        )
    return lines


def markdown(result: PassResult) -> str:
    """A table of the variants, with the command, the machine and what it reaches at best."""
    shape, computer = result.shape, result.machine
    software = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    clip = f"{shape['branches']} branches, {shape['frames']} frames of {shape['width']} x {shape['height']}"
    lines = [
        f"# One U-Net pass: {result.model}",
        "",
        f"{clip}; {result.unet_parameters / 1e6:.1f} million parameters",
        "",
        f"`{result.command}`",
        "",
        f"{computer['processor']}; accelerator {computer['accelerator']}; {computer['threads']} threads; {software}",
        "",
        *(
            f"- peak in {dtype}: {peak.tflops_per_s} TFLOP/s (matrix product), {peak.copy_gb_per_s} GB/s (copy)"
            for dtype, peak in result.peaks.items()
        ),
        f"- diffusers before the first variant and after each: {', '.join(f'{b:.2f}' for b in result.baseline_ms)} ms",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---|---" + "|--:" * (len(_COLUMNS) - 2) + "|",
    ]
    for v in result.variants:
        if v.skipped is not None:
            lines.append(f"| {v.name} | skipped: {v.skipped.replace('|', '/')} |" + " |" * (len(_COLUMNS) - 2))
            continue
        cells = [
            v.name,
            v.dtype,
            _cell(v.pass_ms, "{:.2f} ms"),
            _cell(v.ratio_to_diffusers, "{:.2f}x"),
            _cell(None if v.gflop is None else v.gflop / 1000, "{:.3f}"),
            _cell(v.tflops_per_s, "{:.2f}"),
            _cell(None if v.share_of_peak is None else 100 * v.share_of_peak, "{:.1f} %"),
            _cell(v.kernel_ms, "{:.2f} ms"),
            _cell(v.peak_memory_mb, "{:.0f} MB"),
            _cell(v.pass_memory_mb, "{:.0f} MB"),
            _cell(v.relative_error, "{:.1e}") + (" (wrong)" if v.wrong else ""),
            _cell(v.build_s, "{:.1f} s"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"- {v.name}: {v.note}" + (f" ({'; '.join(v.details)})" if v.details else "") for v in result.variants]
    return "\n".join([*lines, "", *notes, ""])


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def write(result: PassResult, folder: Path) -> list[Path]:
    """Write `pass.json`, `pass.md`, and `profile-<variant>` as both, over what an earlier call wrote.

    Raises:
        StillmotionError: the folder cannot be written.
    """
    texts = {"pass.json": json.dumps(result.to_dict(), indent=2) + "\n", "pass.md": markdown(result)}
    for name, found in result.profiles.items():
        stem = "profile-" + re.sub(r"[^a-z0-9]+", "-", name.lower())
        texts[f"{stem}.json"] = json.dumps({"variant": name, **found.to_dict()}, indent=2) + "\n"
        texts[f"{stem}.md"] = profiling.markdown(found, f"{name}: {result.model}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            # A run on a rented machine may be cut short at any time: never half a file.
            partial = folder / f"{name}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(folder / name)
    except OSError as error:
        raise StillmotionError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return [folder / name for name in texts]
