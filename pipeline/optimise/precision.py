"""Half precision where the device has units for it, and where it is faster and close enough to float32.

What stays in float32, and why:

- the latents between steps, the guidance sum and the solver's arithmetic: they are a few thousand
  numbers, and rounding them at every step adds up (`ImageAnimationPipeline.__call__`);
- statistics of group and layer norms: PyTorch's kernels keep them in float32 by themselves;
- the autoencoder where its decoder overflows: float16 ends at 65,504, which some published
  autoencoders pass (their config says `force_upcast`); bfloat16 has the range of float32.

On a GPU with tensor cores half precision is the largest single gain. Most CPUs have no matrix units for
it, and what they gain or lose by it depends on what else they do: `choose` keeps float32 there.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..machine import dtype_name
from ..model.example import first_pass
from ..model.families import cast_cond
from .base import Change
from .timing import clock, seconds_of

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

LEAST_PSNR_DB = 30.0
"""Below this against float32, on one pass from noise or one decoded frame, a difference begins to show."""

LEAST_GAIN = 1.2
"""Below this ratio of times half precision is not taken."""

_EMULATED = 3.0
"""A first call that takes so many times as long as float32's is not that of a precision that pays."""


@dataclass(frozen=True)
class Trial:
    """One component tried in one precision.

    Attributes:
        component: "network" or "vae" (its decoder).
        seconds: fastest of several calls.
        psnr_db: of its output against float32's, peak being the range of float32's output.
        finite: whether every number of the output is, and of float32's.
    """

    component: str
    dtype: str
    seconds: float
    psnr_db: float
    finite: bool


def set_precision(pipe: ImageAnimationPipeline, dtype: torch.dtype, vae_dtype: torch.dtype | None = None) -> Change:
    """Cast networks and encoders, and the autoencoder; what the libraries keep in float32 stays so.

    The weights as they were stay in memory for as long as the change can be undone.

    Args:
        vae_dtype: None: `dtype`, but float32 where that is float16 and the autoencoder's config says
            that it overflows (`force_upcast`).
    """
    if vae_dtype is None:
        overflows = dtype is torch.float16 and bool(pipe.vae.config.get("force_upcast", False))
        vae_dtype = torch.float32 if overflows else dtype
    before: list[tuple[Tensor, Tensor]] = []
    for name, module in pipe.components.items():
        if not isinstance(module, nn.Module):
            continue
        wanted = vae_dtype if name == "vae" else dtype
        if name in pipe.family.float32_parts:
            wanted = torch.float32
        kept = _kept_in_float32(module, wanted)
        for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
            stays = any(part in key for part in kept)
            if tensor.is_floating_point() and tensor.dtype != wanted and not stays:
                before.append((tensor, tensor.data))
                tensor.data = tensor.data.to(wanted)

    def undo() -> None:
        for tensor, data in before:
            tensor.data = data

    detail = f"network and encoders in {dtype_name(dtype)}, autoencoder in {dtype_name(vae_dtype)}"
    return Change("precision", detail, undo)


def _kept_in_float32(module: nn.Module, dtype: torch.dtype) -> set[str]:
    """Return parts of weights' names that stay in float32 in a half precision, as the libraries load them.

    diffusers keeps its list in both half precisions; transformers has one list for float16 alone and one for both.
    """
    if dtype not in {torch.float16, torch.bfloat16}:
        return set()
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    if isinstance(module, PreTrainedModel) and dtype is torch.bfloat16:
        kept = set()
    if isinstance(module, PreTrainedModel):
        kept.add("inv_freq")  # of rotary embeddings: computed when it is loaded, in float32
    return kept | set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())


def in_precision(pipe: ImageAnimationPipeline, dtype: torch.dtype) -> ImageAnimationPipeline:
    """Return a pipeline cast as `set_precision` casts it; the original and what it shares stay as they are."""
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    if all(tensor.dtype is dtype for part in parts for tensor in part.parameters() if tensor.is_floating_point()):
        return pipe
    cast = copy.deepcopy(pipe)
    set_precision(cast, dtype)
    return cast


def difference(output: Tensor, reference: Tensor, peak: float | None = None) -> tuple[float, float]:
    """Return the relative error of an output, and its PSNR in dB, at most 100.

    Args:
        peak: largest difference that there can be; None takes the reference's range.
    """
    apart, reference = output.double() - reference.double(), reference.double()
    relative, error = float(apart.norm() / reference.norm()), float((apart**2).mean())
    peak = float(reference.max() - reference.min()) if peak is None else peak
    psnr = 100.0 if error == 0 else min(100.0, 10 * math.log10(max(peak**2 / error, 1e-300)))
    return float(f"{relative:.4g}"), round(psnr, 2)


@torch.no_grad()
def precision_trials(pipe: ImageAnimationPipeline) -> list[Trial]:
    """Try one pass of the network and one decoded frame in each precision, from fixed noise."""
    latents, timestep, cond = first_pass(pipe)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)).to(pipe.device)

    def one_pass() -> Tensor:
        dtype = pipe.network.dtype
        return pipe.denoiser.start(cast_cond(cond, dtype))(latents.to(dtype), timestep)

    return try_precisions(pipe, one_pass, lambda: pipe.decode_latents(noise[:1, :, :1]))


@torch.no_grad()
def try_precisions(
    pipe: ImageAnimationPipeline,
    one_pass: Callable[[], Tensor],
    decode: Callable[[], Tensor],
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16, torch.float16),
    repeats: int = 3,
) -> list[Trial]:
    """Time and compare network and decoder in each precision; the pipeline is left as it was.

    Args:
        one_pass: one pass of the network from fixed noise.
        decode: fixed latents to a frame.
        dtypes: float32 first: the others are compared with it.
    """
    trials: list[Trial] = []
    for component, call in (("network", one_pass), ("vae", decode)):
        reference: Tensor | None = None
        plain_s: float | None = None
        for dtype in dtypes:
            change = set_precision(pipe, dtype, dtype)
            try:
                began = clock()
                output = call()
                seconds = clock() - began
                # What other work on the machine adds is not the precision's. One that is emulated is called once.
                if plain_s is None or seconds < _EMULATED * plain_s:
                    seconds = min(seconds_of(call, repeats))
                plain_s = seconds if plain_s is None else plain_s
            finally:
                change.undo()
            output = output.float()
            reference = output if reference is None else reference
            finite = bool(output.isfinite().all() and reference.isfinite().all())
            psnr = difference(output, reference)[1] if finite else -math.inf
            trials.append(Trial(component, dtype_name(dtype), round(seconds, 5), round(psnr, 1), finite))
    return trials


def has_half_units(device: torch.device) -> bool:
    """Return whether a device has units that multiply matrices of half precision; of CPUs those with AMX do."""
    return device.type != "cpu" or torch.cpu._is_amx_tile_supported()  # noqa: SLF001  # PyTorch has no public name


def choose(
    trials: Sequence[Trial], device: torch.device, least_psnr_db: float = LEAST_PSNR_DB
) -> dict[str, torch.dtype]:
    """Return for each component the fastest precision that is finite and close enough to float32.

    It is float32 where the device has no units for another one: what a clock says there depends on what else the
    machine does. So it is where no other is good enough, or where the fastest gains less than `LEAST_GAIN`, which pays
    for no rounding.
    """
    chosen: dict[str, torch.dtype] = {}
    if not has_half_units(device):
        return {trial.component: torch.float32 for trial in trials}
    for component in dict.fromkeys(trial.component for trial in trials):
        good = [t for t in trials if t.component == component and t.finite and t.psnr_db >= least_psnr_db]
        fastest = min(good, key=lambda t: t.seconds, default=None)
        plain = next((t for t in good if t.dtype == "float32"), None)
        if fastest is None or (plain is not None and plain.seconds < LEAST_GAIN * fastest.seconds):
            chosen[component] = torch.float32
        else:
            chosen[component] = getattr(torch, fastest.dtype)
    return chosen


def dtypes_of(folder: Path, name: str) -> dict[str, torch.dtype]:
    """Return the precision that `set_precision` casts each part of a checkpoint's folder to, for loading it so at once.

    Raises:
        ValueError: as `dtype_of`.
    """
    dtype = dtype_of(name)
    try:
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        vae = {}  # loading the autoencoder says what is wrong with it
    overflows = dtype is torch.float16 and bool(vae.get("force_upcast", True))
    return {"default": dtype, "vae": torch.float32 if overflows else dtype}


def dtype_of(name: str) -> torch.dtype:
    """Return a precision by its name in `animator.json`.

    Raises:
        ValueError: it is none of those that models run in.
    """
    known = {dtype_name(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    if name not in known:
        raise ValueError(f"precision: {name!r} is not one of {', '.join(known)}")
    return known[name]
