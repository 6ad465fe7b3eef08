"""Starts small models at the best linear answer instead of at random.

Trained from random weights on a CPU, a small `AutoencoderKL` needs thousands of updates before it
reconstructs as well as a principal component analysis of 4x4 patches, because its group norms take
away the very brightness and contrast that it has to carry. So the weights are set by hand such that
the untrained encoder computes that analysis, and the untrained decoder its mean colours:

- the residual branches begin at zero, so that the network is a chain of its plain convolutions;
- each group of the last norm holds two constant channels, +K and -K. They fix the group's standard
  deviation, whatever the picture, and tell its mean, which `conv_out` adds back;
- the last activation works far up its slope, where SiLU is the identity.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, I2VGenXLUNet
from torch import Tensor, nn

_CONSTANT = 4.0  # K: large against signals of unit size, small enough for the other norms of the group
_UP_SLOPE = 6.0  # silu(6 + x) differs from 6 + x by less than .05 down to x = -2
_SHRINK = 0.2  # keeps +K and -K on the slope too


@torch.no_grad()
def start_linear(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Set the weights of an autoencoder with three levels (factor 4) and four norm groups.

    Args:
        pictures: `(count, 3, size, size)` in [-1, 1], to learn the patches from.
    """
    patches = F.unfold(pictures, 4, stride=4).transpose(1, 2).reshape(-1, 48)
    mean = patches.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    order = values.argsort(descending=True)
    scale = values[order].clamp(min=1e-6).sqrt()  # (48,)
    vectors = vectors[:, order]  # (48, 48), a component a column
    for module in vae.modules():
        if type(module).__name__ == "ResnetBlock2D":
            _zero(module.conv2)
        elif type(module).__name__ == "Attention":
            _zero(module.to_out[0])
    _start_encoder(vae, mean, vectors, scale)
    _start_decoder(vae, mean, vectors, scale)


def _zero(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _bias(layer: nn.Conv2d) -> Tensor:
    if layer.bias is None:
        raise ValueError("a layer of the linear start has no bias")
    return layer.bias


def _pass_through(layer: nn.Conv2d, channels: int) -> None:
    """Make the first output channels copies of the first input channels."""
    middle = layer.kernel_size[0] // 2
    layer.weight[:channels] = 0
    _bias(layer)[:channels] = 0
    for k in range(channels):
        layer.weight[k, k, middle, middle] = 1


def _make_constant(layer: nn.Conv2d, channel: int, value: float) -> None:
    layer.weight[channel] = 0
    _bias(layer)[channel] = value


def _linear_out(norm: nn.GroupNorm, conv_out: nn.Conv2d, signals: int, rows: Tensor) -> None:
    """Make norm, activation and convolution a linear map of the first channel of each group.

    Args:
        rows: `(outputs, signals)`, the map.
    """
    per_group = norm.num_channels // norm.num_groups
    deviation = _CONSTANT * math.sqrt(2 / per_group)
    conv_out.weight[: len(rows)] = 0
    _bias(conv_out)[: len(rows)] = 0
    back = 1 / (2 * _SHRINK)  # the two constants together give -2 * _SHRINK * mean
    for group in range(signals):
        signal, plus, minus = group * per_group, (group + 1) * per_group - 2, (group + 1) * per_group - 1
        norm.weight[signal] = deviation
        norm.weight[plus] = norm.weight[minus] = deviation * _SHRINK
        for channel in (signal, plus, minus):
            norm.bias[channel] = _UP_SLOPE
        conv_out.weight[: len(rows), signal, 1, 1] = rows[:, group]
        conv_out.weight[: len(rows), plus, 1, 1] = -back * rows[:, group]
        conv_out.weight[: len(rows), minus, 1, 1] = -back * rows[:, group]
        _bias(conv_out)[: len(rows)] += rows[:, group] * _UP_SLOPE * (2 * back - 1)


def _start_encoder(vae: AutoencoderKL, mean: Tensor, vectors: Tensor, scale: Tensor) -> None:
    encoder = vae.encoder
    first, second, third = encoder.down_blocks
    _pass_through(encoder.conv_in, 3)
    gather = first.downsamplers[0].conv  # its taps 0 and 1 are the 2x2 block, tap 2 the next one
    gather.weight[:12] = 0
    _bias(gather)[:12] = 0
    for colour in range(3):
        for y in range(2):
            for x in range(2):
                gather.weight[4 * colour + 2 * y + x, colour, y, x] = 1
    _pass_through(second.resnets[0].conv_shortcut, 16)
    project = second.downsamplers[0].conv
    kept = min(28, project.out_channels)
    project.weight[:kept] = 0
    for k in range(kept):
        component = (vectors[:, k] / scale[k]).reshape(3, 4, 4)  # (colour, y, x) of a patch
        for y in range(4):
            for x in range(4):
                at = 2 * (y % 2) + (x % 2)
                for colour in range(3):
                    project.weight[k, 4 * colour + at, y // 2, x // 2] = component[colour, y, x]
        _bias(project)[k] = -(mean @ vectors[:, k]) / scale[k]
    widen = third.resnets[0].conv_shortcut  # (64, 32, 1, 1)
    per_group = widen.out_channels // encoder.conv_norm_out.num_groups
    for group in range(4):
        widen.weight[group * per_group] = 0
        _bias(widen)[group * per_group] = 0
        widen.weight[group * per_group, group, 0, 0] = 1
        _make_constant(widen, (group + 1) * per_group - 2, _CONSTANT)
        _make_constant(widen, (group + 1) * per_group - 1, -_CONSTANT)
    _linear_out(encoder.conv_norm_out, encoder.conv_out, 4, torch.eye(4))
    encoder.conv_out.weight[4:] = 0
    _bias(encoder.conv_out)[4:] = -8.0  # log of the posterior's variance
    for layer in (vae.quant_conv, vae.post_quant_conv):
        _pass_through(layer, layer.out_channels)


def _start_decoder(vae: AutoencoderKL, mean: Tensor, vectors: Tensor, scale: Tensor) -> None:
    decoder = vae.decoder
    first, second, third = decoder.up_blocks
    _pass_through(decoder.conv_in, 4)
    _pass_through(first.upsamplers[0].conv, 4)
    _pass_through(second.resnets[0].conv_shortcut, 4)
    _pass_through(second.upsamplers[0].conv, 4)
    colours = third.resnets[0].conv_shortcut  # (16, 32, 1, 1)
    per_group = colours.out_channels // decoder.conv_norm_out.num_groups
    for colour in range(3):
        row = colour * per_group
        colours.weight[row] = 0
        # The mean colour of a patch, from its four components.
        means = vectors.reshape(3, 16, 48)[colour].mean(dim=0)[:4] * scale[:4]
        colours.weight[row, :4, 0, 0] = means
        _bias(colours)[row] = mean.reshape(3, 16)[colour].mean()
        _make_constant(colours, row + per_group - 2, _CONSTANT)
        _make_constant(colours, row + per_group - 1, -_CONSTANT)
    _linear_out(decoder.conv_norm_out, decoder.conv_out, 3, torch.eye(3))


@torch.no_grad()
def start_still(unet: I2VGenXLUNet) -> None:
    """Set the weights of a small I2VGen-XL U-Net such that it begins by predicting a still clip.

    At t = T the target v is minus the clip, so minus the picture's latents in every frame is the best
    guess that knows of no motion. From there the picture need not be learned, only what moves. The
    path is: image latents, unchanged by their encoders, beside the noisy latents through `conv_in`,
    over the outermost skip connection, to `conv_out`. All other weights stay as they are drawn, and
    reach the output once `conv_out` has learned to listen to them.
    """
    channels = unet.config["in_channels"]
    first, second, third = (layer for layer in unet.image_latents_proj_in if isinstance(layer, nn.Conv2d))
    _pass_through(first, channels)
    _pass_through(second, channels)
    _pass_through(third, channels)
    _bias(first)[:channels] = _UP_SLOPE
    _bias(third)[:channels] = -_UP_SLOPE
    encoder = unet.image_latents_temporal_encoder
    _zero(encoder.attn1.to_out[0])
    _zero(encoder.ff.net[-1])
    _pass_through(unet.conv_in, 2 * channels)  # noisy latents, then the picture's
    _zero(unet.transformer_in.proj_out)

    block = unet.up_blocks[-1]
    last = block.resnets[-1]
    _zero(last.conv2)
    for kind in ("attentions", "temp_attentions"):  # a block without cross-attention has neither
        if hasattr(block, kind):
            _zero(getattr(block, kind)[-1].proj_out)
    shortcut = last.conv_shortcut  # of the layer below, then of the skip connection
    skip = shortcut.in_channels - unet.config["block_out_channels"][0]
    norm = unet.conv_norm_out
    per_group = norm.num_channels // norm.num_groups
    _zero(unet.conv_out)
    for k in range(channels):
        for offset, source in ((0, channels + k), (1, k)):
            row = k * per_group + offset
            shortcut.weight[row] = 0
            _bias(shortcut)[row] = 0
            shortcut.weight[row, skip + source, 0, 0] = 1
            norm.weight[row] = _CONSTANT * math.sqrt(2 / per_group)
            norm.bias[row] = _UP_SLOPE
        _make_constant(shortcut, (k + 1) * per_group - 2, _CONSTANT)
        _make_constant(shortcut, (k + 1) * per_group - 1, -_CONSTANT)
    _linear_out(norm, unet.conv_out, channels, -torch.eye(channels))
