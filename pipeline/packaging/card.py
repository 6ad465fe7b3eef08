"""The model card that goes into a package as its README.md."""

from __future__ import annotations

from collections.abc import Mapping

from ..machine import machine, versions
from ..pages import page
from ..serve.manifest import ModelInfo

_FIGURES = {
    "motion_accuracy": ("Motion as captioned", "share of clips"),
    "first_frame_psnr_db": ("First frame against the picture", "dB PSNR"),
    "vae_psnr_db": ("Autoencoder alone, which bounds it", "dB PSNR"),
    "ground_truth_psnr_db": ("All frames against the generated clip", "dB PSNR"),
    "psnr_to_teacher_db": ("All frames against the teacher's", "dB PSNR"),
}


def model_card(info: ModelInfo, metrics: Mapping[str, object], *, embedded: bool) -> str:
    """Return Markdown with the header that model hubs read.

    Args:
        metrics: of `pipeline evaluate`, by key; empty where the model was not judged.
        embedded: whether this is the teacher that the project trains itself.
    """
    others = (f"{name} {kind}" for name, kind in info.precision.items() if name != "default")
    known = ((words, metrics.get(key), unit) for key, (words, unit) in _FIGURES.items())
    return page(
        "card.md.j2",
        info=info,
        embedded=embedded,
        precision="; ".join([info.dtype, *others]),
        metrics=metrics,
        figures=[figure for figure in known if figure[1] is not None],
        machine=machine(),
        versions=versions(),
    )
