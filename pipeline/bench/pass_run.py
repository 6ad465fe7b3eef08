"""The command `bench --part pass`: opens a preset's model, measures a pass, and writes as it goes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from . import pass_report
from .presets import open_preset
from .unet_pass import PassResult, Tell, bench_pass, choose_variants


def run_pass(
    preset: str,
    model: str | None,
    names: Sequence[str] | None,
    dtype: str | None,
    passes: int,
    branches: int,
    out: Path | None,
    tell: Tell,
) -> PassResult:
    """Measure and write one U-Net pass of a preset's model.

    Args:
        names: of variants; None: those that fit the device.
        dtype: None: bfloat16 on a GPU, and float32 on a CPU, most of which only emulate the others.
        out: for tables and profiles, written anew after each variant; None: no profiles are taken.

    Raises:
        ValueError: an unknown variant; it is refused before the model is opened.
        StillmotionError: the model cannot be opened or measured, or the folder cannot be written.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    variants = choose_variants(names, device)
    pipe, name = open_preset(preset, model)

    def save(result: PassResult) -> None:
        if out is not None:
            pass_report.write(result, out)

    with tempfile.TemporaryDirectory() as folder:
        return bench_pass(
            pipe,
            name,
            variants,
            getattr(torch, dtype or ("bfloat16" if device.type == "cuda" else "float32")),
            Path(folder),
            passes,
            branches,
            profiled=out is not None,
            tell=tell,
            save=save,
        )
