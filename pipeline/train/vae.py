"""Trains the small video autoencoder of the embedded Wan teacher: 8 x 8 pixels and 4 frames a latent cell.

It starts at a linear answer instead of at random (`start_linear`): the encoder computes a principal component analysis
of patches of single frames, and the decoder their mean colours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..clips.scenes import SceneGenerator
from ..judge.metrics import psnr_db
from ..writing import write_beside
from .checkpoint import Checkpoint, end_of
from .half import in_half_precision
from .settings import VaeSettings, learning_rate

logger = logging.getLogger(__name__)

_CONSTANT = 8.0  # large against signals of unit size, so that a norm over channels is the same everywhere


def build_vae(settings: VaeSettings) -> AutoencoderKLWan:
    """Return an autoencoder that maps `4 k + 1` frames of `size` pixels to `k + 1` of `size / 8` cells."""
    return AutoencoderKLWan(
        base_dim=settings.base,
        decoder_base_dim=settings.decoder_base,
        z_dim=settings.channels,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        latents_mean=[0.0] * settings.channels,
        latents_std=[1.0] * settings.channels,
    )


@torch.no_grad()
def start_linear(vae: AutoencoderKLWan, pictures: Tensor) -> None:
    """Set the weights such that the encoder analyses patches, and the decoder paints their mean colours.

    Residual branches begin at zero. Before the last norm stand signals, their negatives and constants: the constants
    make the norm the same everywhere, and silu(x) - silu(-x) = x makes the activation linear.

    Args:
        pictures: `(count, 3, size, size)` in [-1, 1], to learn the patches from.
    """
    for module in vae.modules():
        kind = type(module).__name__
        if kind == "WanResidualBlock":
            _zero(module.conv2)
        elif kind == "WanAttentionBlock":
            _zero(module.proj)
        elif kind == "WanCausalConv3d" and module.kernel_size[0] > 1:
            module.weight[:, :, :-1] = 0  # the past: single frames teach nothing about it, and chance would be noise
    for layer in (vae.quant_conv, vae.post_quant_conv):
        _pass(layer, layer.out_channels)
    latents = _start_encoder(vae, pictures)  # (count, channels, size / 8, size / 8)
    means = F.avg_pool2d(pictures, 8).permute(0, 2, 3, 1).reshape(-1, 3)
    rows = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    _start_decoder(vae, torch.linalg.lstsq(rows, means).solution)


def _start_encoder(vae: AutoencoderKLWan, pictures: Tensor) -> Tensor:
    """Return the latents of the pictures."""
    z, encoder = vae.config.z_dim, vae.encoder
    _pass(encoder.conv_in, 12)
    features = patchify(pictures[:, :, None], 2)[:, :, 0]  # (count, 12, size / 2, size / 2)
    resamplers = [block for block in encoder.down_blocks if type(block).__name__ == "WanResample"]
    blocks = [block for block in encoder.down_blocks if type(block).__name__ == "WanResidualBlock"]
    for level, resampler in enumerate(resamplers):
        last = level == len(resamplers) - 1
        kept = z if last else min(resampler.dim, 24)
        features = _analyse(resampler.resample[1], features, kept, last)
        _keep_last_frame(resampler.time_conv, kept)
        if not last:
            _pass(blocks[level + 1].conv_shortcut, kept)
    widen = blocks[-1].conv_shortcut
    _zero(widen)
    for k in range(z):
        widen.weight[k, k] = 1
        widen.weight[z + k, k] = -1
    widen.bias[2 * z :] = _CONSTANT
    constants = widen.out_channels - 2 * z
    encoder.norm_out.gamma[:] = (constants * _CONSTANT**2 + 2 * z) ** 0.5 / encoder.norm_out.scale
    _zero(encoder.conv_out)
    for k in range(z):
        encoder.conv_out.weight[k, k, -1, 1, 1] = 1
        encoder.conv_out.weight[k, z + k, -1, 1, 1] = -1
    encoder.conv_out.bias[z:] = -6.0  # log of the posterior's variance
    return cast(Tensor, features)


def _start_decoder(vae: AutoencoderKLWan, means: Tensor) -> None:
    """Set the decoder's weights.

    Args:
        means: `(channels + 1, 3)`, mean colour of a cell as a linear function of its latents and 1.
    """
    z, decoder = vae.config.z_dim, vae.decoder
    _pass(decoder.conv_in, z)
    first, second = (block.upsamplers[0] for block in decoder.up_blocks if block.upsamplers is not None)
    for resampler in (first, second):
        _repeat_frame(resampler.time_conv)
    _pass(first.resample[1], z)
    paint = second.resample[1]
    paint.weight[:10] = 0
    paint.weight[10:] *= 0.5
    paint.weight[:3, :z, 1, 1] = means[:z].T
    paint.bias[:3] = means[z]
    paint.weight[3:6], paint.bias[3:6] = -paint.weight[:3], -paint.bias[:3]
    paint.bias[6:10] = _CONSTANT
    decoder.norm_out.gamma[:] = 2 * _CONSTANT / decoder.norm_out.scale
    decoder.conv_out.weight[:] *= 0.1
    decoder.conv_out.bias[:] = 0
    decoder.conv_out.weight[:, :10] = 0
    for k in range(12):  # four pixels of each colour
        decoder.conv_out.weight[k, k // 4, -1, 1, 1] = 1
        decoder.conv_out.weight[k, 3 + k // 4, -1, 1, 1] = -1


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _pass(layer: Any, channels: int) -> None:
    """Make the first output channels copies of the first input channels, of the present frame."""
    layer.weight[:channels] = 0
    layer.bias[:channels] = 0
    for k in range(channels):
        tap = [size // 2 for size in layer.kernel_size]
        if len(tap) == 3:
            tap[0] = layer.kernel_size[0] - 1  # causal: the last tap is now
        layer.weight[(k, k, *tap)] = 1


def _analyse(conv: Any, features: Tensor, kept: int, last: bool) -> Tensor:
    """Make a convolution of stride 2 the analysis of blocks of 2 x 2, and return what it gives.

    The last one scales its components towards each other, but not all the way: a component that few pixels depend on
    is worth less to a network that learns them all with one weight.
    """
    channels = features.shape[1]
    blocks = F.unfold(features, 2, stride=2).transpose(1, 2).reshape(-1, 4 * channels)
    mean = blocks.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov((blocks - mean).T))
    rows = vectors.flip(1)[:, :kept].T  # (kept, 4 * channels)
    if last:
        scales = values.flip(0)[:kept].clamp(min=1e-6) ** 0.25
        rows = rows / scales[:, None] / scales.square().mean().sqrt()
    conv.weight[:kept] = 0
    conv.weight[:kept, :channels, :2, :2] = rows.reshape(kept, channels, 2, 2)
    conv.bias[:kept] = -rows @ mean
    return F.conv2d(F.pad(features, (0, 1, 0, 1)), conv.weight[:kept, :channels], conv.bias[:kept], stride=2)


def _keep_last_frame(conv: Any, channels: int) -> None:
    conv.weight[:channels] = 0
    conv.bias[:channels] = 0
    for k in range(channels):
        conv.weight[k, k, -1, 0, 0] = 1


def _repeat_frame(conv: Any) -> None:
    channels = conv.in_channels
    _zero(conv)
    for k in range(channels):
        conv.weight[k, k, -1, 0, 0] = 1
        conv.weight[channels + k, k, -1, 0, 0] = 1


class SingleFrames:
    """The forward of a causal convolution, which looks at a frame without a past as at a picture.

    Two thirds of its taps would see zeros then. On two CPU cores without AVX-512 a step of training with single frames
    takes half of the time so (0.52 s instead of 1.1 s).
    """

    def __init__(self, conv: WanCausalConv3d) -> None:
        self.conv = conv

    def __call__(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        conv = self.conv
        if cache_x is not None or x.shape[2] > 1 or conv.stride != (1, 1, 1):
            return cast(Tensor, WanCausalConv3d.forward(conv, x, cache_x))
        # diffusers pads by `_padding`: width, height and time, each before and after.
        padding = (conv._padding[2], conv._padding[0])  # noqa: SLF001
        kernel, picture = conv.weight[:, :, -1], x[:, :, 0]
        kernel, picture = (one.contiguous(memory_format=torch.channels_last) for one in (kernel, picture))
        return F.conv2d(picture, kernel, conv.bias, padding=padding)[:, :, None]


def decode_unclamped(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    """Return what `vae.decode` gives before it is clamped to [-1, 1], where a clamp would hide the gradient."""
    vae.clear_cache()
    x, cache = vae.post_quant_conv(z), vae._feat_map  # noqa: SLF001  # as its own decode does
    parts = [
        vae.decoder(x[:, :, k : k + 1], feat_cache=cache, feat_idx=[0], first_chunk=k == 0) for k in range(z.shape[2])
    ]
    vae.clear_cache()
    return cast(Tensor, unpatchify(torch.cat(parts, dim=2), vae.config.patch_size))


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return squared error (what PSNR counts), more where something moves, and a little absolute error of gradients."""
    moves = (target - target[:, :, :1]).abs().amax(dim=1, keepdim=True) > 0.1
    loss = ((1 + 2 * moves) * (output - target) ** 2).mean()
    for dim in (-1, -2):
        loss = loss + 0.03 * F.l1_loss(output.diff(dim=dim), target.diff(dim=dim))
    return loss


class _Clips(IterableDataset[Tensor]):
    def __init__(self, settings: VaeSettings, frames: int, batch: int, seed: int) -> None:
        self.settings, self.frames, self.batch, self.seed = settings, frames, batch, seed

    def __iter__(self) -> Iterator[Tensor]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        seed, whole = self.seed + (0 if worker is None else 1_000_003 * worker.id), 2 * self.frames - 1
        source = SceneGenerator(self.settings.size, max(2, whole), seed, photograph_share=0.5)
        random = torch.Generator().manual_seed(seed)
        while True:
            made = torch.stack([source.scene().clip for _ in range(self.batch)]) * 2 - 1
            begin = int(torch.randint(made.shape[2] - self.frames + 1, (), generator=random))
            yield made[:, :, begin : begin + self.frames]


@torch.no_grad()
def evaluate_vae(vae: AutoencoderKLWan, settings: VaeSettings, clips: int) -> dict[str, float]:
    """Return PSNR in dB after one round through the autoencoder, on clips and photographs that training never saw."""
    from ..clips.photographs import crop

    source = SceneGenerator(settings.size, 2 * settings.frames - 1, seed=10_001, held_out=True, photograph_share=0.0)
    generated = (torch.stack([source.scene().clip for _ in range(clips)]) * 2 - 1).to(vae.device)
    random = torch.Generator().manual_seed(10_002)
    photos = torch.stack([crop(random, settings.size, held_back=True) for _ in range(4 * clips)])[:, :, None] * 2 - 1

    def round_trip(x: Tensor) -> Tensor:
        x = x.to(vae.device)
        return psnr_db((vae.decode(vae.encode(x).latent_dist.mode()).sample + 1) / 2, (x + 1) / 2)

    through = torch.cat([vae.decode(vae.encode(x[None]).latent_dist.mode()).sample for x in generated])
    first, last = (psnr_db((through[:, :, k] + 1) / 2, (generated[:, :, k] + 1) / 2) for k in (0, -1))
    return {
        "clips_db": float(psnr_db((through + 1) / 2, (generated + 1) / 2).mean()),
        "first_frame_db": float(first.mean()),
        "last_frame_db": float(last.mean()),
        "photographs_db": float(round_trip(photos).mean()),
    }


def train_vae(
    settings: VaeSettings, out: Path, minutes: float | None = None, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Train, or go on from the checkpoint in `out`, and save the autoencoder to `out/vae`.

    Args:
        minutes: stop after this time, even if steps are left; a later call goes on from there.

    Returns:
        What `evaluate_vae` finds.
    """
    torch.manual_seed(settings.seed)
    vae = build_vae(settings)
    source = SceneGenerator(settings.size, 2, settings.seed + 7, photograph_share=0.5)
    start_linear(vae, torch.stack([source.scene().clip[:, -1] for _ in range(300)]) * 2 - 1)
    vae.to(device)
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d):
            module.forward = SingleFrames(module)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-5, fused=True
    )
    checkpoint = Checkpoint(out / "vae.pt", vae=vae, optimizer=optimizer)
    step = checkpoint.load()
    logger.info("vae step %d  %s", step, evaluate_vae(vae, settings, settings.judged // 4))
    stream, still_stream = None, None
    ends, began = end_of(minutes), time.monotonic()
    while step < settings.steps and time.monotonic() < ends:
        still = step < settings.still_steps
        if stream is None or still != still_stream:
            still_stream = still
            frames, batch = (1, 4 * settings.batch) if still else (settings.frames, settings.batch)
            data = _Clips(settings, frames, batch, settings.seed + 1 + step)
            stream = iter(DataLoader(data, batch_size=None, num_workers=settings.workers, prefetch_factor=4))
        clips = next(stream).to(device)
        # Clips are another task than single frames: a second schedule, which begins gently.
        done, whole = (step, settings.still_steps) if still else (step - settings.still_steps, settings.clip_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done, whole, settings.learning_rate * (1 if still else 0.3), hold=0.4, end=0.1)
        with in_half_precision(device):
            posterior = vae.encode(clips).latent_dist
            output = decode_unclamped(vae, posterior.sample())
        loss = reconstruction_loss(output.float(), clips)
        loss = loss + settings.kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 0.5)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            pace = (time.monotonic() - began) / 50
            logger.info("vae step %d/%d  loss %.5f  %.2f s a step", step, settings.steps, loss.item(), pace)
            began = time.monotonic()
        if step % 200 == 0:
            logger.info("vae step %d  %s", step, evaluate_vae(vae, settings, settings.judged // 4))
            checkpoint.save(step)
            began = time.monotonic()
    checkpoint.save(step)
    vae.eval().to("cpu")
    _normalise(vae, settings)
    write_beside(out / "vae", vae.save_pretrained)
    found = evaluate_vae(vae, settings, settings.judged)
    logger.info("vae, trained: %s", found)
    return found


@torch.no_grad()
def _normalise(vae: AutoencoderKLWan, settings: VaeSettings) -> None:
    """Set `latents_mean` and `latents_std` so that the latents have the scale of the noise, one for all channels."""
    source = SceneGenerator(settings.size, 2 * settings.frames - 1, settings.seed + 77)
    latents = torch.cat(
        [vae.encode(source.scene().clip[None] * 2 - 1).latent_dist.mode() for _ in range(settings.judged)]
    )
    flat = latents.transpose(0, 1).flatten(1)
    vae.register_to_config(
        latents_mean=[round(float(m), 5) for m in flat.mean(dim=1)],
        latents_std=[round(float(flat.std(dim=1).square().mean().sqrt()), 5)] * len(flat),
    )
