"""Trains the small autoencoder of the embedded teacher on frames of generated clips."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from ..clips import ClipGenerator
from ..judge.metrics import psnr_db
from ..writing import write_beside
from .checkpoint import Checkpoint, end_of
from .linear_start import start_linear
from .settings import VaeSettings, learning_rate
from .stream import frames

logger = logging.getLogger(__name__)


def build_vae(settings: VaeSettings) -> AutoencoderKL:
    """Return a KL autoencoder that maps `size` pixels to `size / 4` cells of 4 channels."""
    levels = len(settings.block_out_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=settings.block_out_channels,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=settings.size,
        scaling_factor=1.0,
    )


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return squared error (what PSNR counts) with a little absolute error of the gradients (sharp edges)."""
    loss = F.mse_loss(output, target)
    for dim in (-1, -2):
        loss = loss + 0.05 * F.l1_loss(output.diff(dim=dim), target.diff(dim=dim))
    return loss


@torch.no_grad()
def evaluate_vae(vae: AutoencoderKL, size: int, clips: int = 64) -> float:
    """Return mean PSNR in dB of first frames of held-out clips after one round through the autoencoder."""
    batch = ClipGenerator(size, frames=2, seed=10_001, held_out=True).batch(clips)
    pictures = (batch.clips[:, :, 0] * 2 - 1).to(vae.device)
    decoded = vae.decode(vae.encode(pictures).latent_dist.mode()).sample
    return float(psnr_db((decoded + 1) / 2, (pictures + 1) / 2).mean())


def train_vae(
    settings: VaeSettings,
    out: Path,
    minutes: float | None = None,
    device: torch.device | str = "cpu",
) -> float:
    """Train, or go on from the checkpoint in `out`, and save the autoencoder to `out/vae`.

    Args:
        minutes: stop after this time, even if steps are left; a later call goes on from there.

    Returns:
        PSNR in dB on held-out pictures.
    """
    torch.manual_seed(settings.seed)
    vae = build_vae(settings)
    start_linear(vae, ClipGenerator(settings.size, frames=2, seed=settings.seed + 7).batch(256).clips[:, :, 0] * 2 - 1)
    vae.to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = Checkpoint(out / "vae.pt", vae=vae, optimizer=optimizer)
    step = checkpoint.load()
    stream = frames(settings.size, settings.batch, seed=settings.seed + 1 + step)
    ends = end_of(minutes)
    while step < settings.steps and time.monotonic() < ends:
        pictures = next(stream).to(device) * 2 - 1
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.steps, settings.learning_rate)
        posterior = vae.encode(pictures).latent_dist
        loss = reconstruction_loss(vae.decode(posterior.sample()).sample, pictures)
        loss = loss + settings.kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            psnr = evaluate_vae(vae, settings.size, clips=32)
            logger.info("vae step %d/%d  loss %.5f  held-out PSNR %.2f dB", step, settings.steps, loss.item(), psnr)
            checkpoint.save(step)
    checkpoint.save(step)
    vae.eval().to("cpu")
    _normalise(vae, settings)
    write_beside(out / "vae", vae.save_pretrained)
    return evaluate_vae(vae, settings.size, clips=256)


@torch.no_grad()
def _normalise(vae: AutoencoderKL, settings: VaeSettings) -> None:
    """Set `scaling_factor` so that latents have unit standard deviation, as the noise has."""
    batch = ClipGenerator(settings.size, frames=2, seed=settings.seed + 77).batch(256)
    latents = vae.encode(batch.clips[:, :, 0] * 2 - 1).latent_dist.mode()
    vae.register_to_config(scaling_factor=round(1.0 / float(latents.std()), 5))
