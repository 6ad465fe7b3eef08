"""The model card that goes into a package as its README.md."""

from __future__ import annotations

from collections.abc import Mapping

from ..machine import machine, versions
from ..serve.manifest import ModelInfo

_METRIC_WORDS = {
    "motion_accuracy": ("Motion as captioned", "share of clips"),
    "first_frame_psnr_db": ("First frame against the picture", "dB PSNR"),
    "vae_psnr_db": ("Autoencoder alone, which bounds it", "dB PSNR"),
    "ground_truth_psnr_db": ("All frames against the generated clip", "dB PSNR"),
    "psnr_to_teacher_db": ("All frames against the teacher's", "dB PSNR"),
}


def model_card(info: ModelInfo, metrics: Mapping[str, object], *, embedded: bool) -> str:
    """Markdown with the header that model hubs read.

    Args:
        metrics: of `pipeline evaluate`, by key; empty where the model was not judged.
        embedded: whether this is the teacher that the project trains itself.
    """
    return "\n".join(
        [
            *_header(embedded=embedded),
            *_what(info),
            *_use(embedded=embedded),
            *_made(embedded=embedded),
            *_figures(metrics),
            "",
        ]
    )


def _header(*, embedded: bool) -> list[str]:
    lines = ["---", "library_name: diffusers", "pipeline_tag: image-to-video", "tags: [stillmotion, image-animation]"]
    return [*lines, *(["license: apache-2.0"] if embedded else []), "---", ""]


def _what(info: ModelInfo) -> list[str]:
    scales = f"caption {info.guidance_scale}, picture {info.image_guidance_scale}"
    asked = [f"| Control `{name}` | {c.about}, {c.least:g} to {c.most:g} |" for name, c in info.controls.items()]
    return [
        f"# {info.teacher}",
        "",
        "Turns a still picture and a prompt into a short clip.",
        "",
        "| | |",
        "|---|---|",
        f"| Family | {info.family} |",
        f"| Clip | {info.frames} frames of {info.width} x {info.height} pixels at {info.fps} frames per second |",
        f"| Sampling | {info.sampling} |",
        f"| Guidance scales | {scales} |",
        *asked,
        f"| Precision, runtime | {_precision(info)}, {info.runtime} |",
        "",
    ]


def _precision(info: ModelInfo) -> str:
    others = (f"{name} {kind}" for name, kind in info.precision.items() if name != "default")
    return "; ".join([info.dtype, *others])


def _use(*, embedded: bool) -> list[str]:
    lines = ["## Intended use", ""]
    if not embedded:
        return [
            *lines,
            "As the checkpoint that it was made from; its licence and limits hold for this package too.",
            "",
        ]
    return [
        *lines,
        "To run, test and teach the whole chain from checkpoint to served animation on any computer. It is not a",
        "general video model.",
        "",
        "## Limits",
        "",
        "- It knows captions of the form `a red circle moves right`: ten colours, eight shapes, eight motions.",
        "  Other words are read letter by letter and mean nothing to it.",
        "- It moves one flat-coloured sprite before a background that stands still.",
        "- Its clips are small; players show them enlarged.",
        "",
    ]


def _made(*, embedded: bool) -> list[str]:
    if not embedded:
        return []
    return [
        "## Training data",
        "",
        "Clips that a program draws while training runs: no picture of a person, no collected data. One in seven",
        "combinations of colour, shape and motion is kept out for judging. `python -m pipeline train` repeats it.",
        "",
        "## Licence",
        "",
        "Apache-2.0, weights included.",
        "",
    ]


def _figures(metrics: Mapping[str, object]) -> list[str]:
    lines = ["## Figures", ""]
    known = [(*_METRIC_WORDS[key], metrics[key]) for key in _METRIC_WORDS if metrics.get(key) is not None]
    if not known:
        return [*lines, "Not judged when it was packaged: `python -m pipeline evaluate --model TAG` does it."]
    lines += ["| figure | value | unit |", "|---|---|---|"]
    lines += [f"| {words} | {value} | {unit} |" for words, unit, value in known]
    interval = metrics.get("motion_accuracy_interval")
    if isinstance(interval, (list, tuple)) and len(interval) == 2:
        lines += ["", f"95 % interval of the first figure: {interval[0]} to {interval[1]}."]
    computer, software = machine(), versions()
    where = f"{computer['processor']}, accelerator {computer['accelerator']}"
    which = f"torch {software.get('torch')}, diffusers {software.get('diffusers')}"
    lines += ["", f"On {metrics.get('clips')} held-out clips, seed {metrics.get('seed')}, {where}, {which}."]
    return lines
