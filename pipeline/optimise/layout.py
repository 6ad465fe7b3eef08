"""Channels last: the memory of a video U-Net laid out as its matrix units read it.

Convolutions of half precision on tensor cores read `(rows, height, width, channels)`; a U-Net in
PyTorch's default layout is copied there and back around each of them. Kept in channels last, the
memory of `(batch * frames, channels, height, width)` is, without a copy, also

- the tokens of attention over positions, `(batch * frames, height * width, channels)`;
- a clip with its positions in one row, `(batch, channels, frames, height * width)`, channels last
  again, on which a convolution over time is one of two dimensions.

What goes back to the default layout on the way is given another `forward` of the same result, by
taking the module's class to a subclass of it: parameters and their names stay as they are, so that
weights load, save and are packaged as ever.

- `GroupNorm`: PyTorch's kernel for CUDA copies its input to the default layout (up to 2.13 at least).
- `TemporalConvLayer`: its 3D convolutions.
- `TransformerTemporalModel`, `Transformer2DModel`: `.contiguous()` before the residual is added.
- `Upsample2D`: `.contiguous()` from 64 rows on, a fault of PyTorch 1 worked around.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel, TransformerTemporalModelOutput
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from .base import Change, NotApplicable


def tokens_of(images: Tensor) -> Tensor:
    """`(rows, channels, height, width)` to `(rows, height, width, channels)`: contiguous if it is channels last."""
    return images.permute(0, 2, 3, 1)


def images_of(tokens: Tensor) -> Tensor:
    """`(rows, height, width, channels)` to `(rows, channels, height, width)`: channels last if it is contiguous."""
    return tokens.permute(0, 3, 1, 2)


def group_norm(images: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Group norm of channels-last images `(rows, channels, height, width)`, channels last again.

    Mean and variance of each channel come first and are then put together by groups, as memory is
    read in its order that way. They and the scaling are in float32 where images are in less.
    """
    rows, channels, height, width = images.shape
    tokens = tokens_of(images).reshape(rows, height * width, channels)
    if images.dtype in {torch.bfloat16, torch.float16}:
        # These two read half precision and add up in float32 without a cast of all positions beforehand.
        # What cancels in the difference is less than what rounding took from the images.
        mean = tokens.mean(1, dtype=torch.float32)  # (rows, channels)
        square = torch.linalg.vector_norm(tokens, dim=1, dtype=torch.float32).square() / (height * width)
        variance = (square - mean.square()).clamp(min=0)
    else:
        variance, mean = torch.var_mean(tokens, 1, correction=0)
    mean, variance = (x.view(rows, groups, -1) for x in (mean, variance))
    variance, mean = variance.mean(2) + mean.var(2, correction=0), mean.mean(2)  # (rows, groups)
    scale = torch.rsqrt(variance + eps)
    mean, scale = (x.repeat_interleave(channels // groups, dim=1) for x in (mean, scale))  # (rows, channels)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    shift, scale = shift[:, None], scale[:, None]
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        normed = torch.addcmul(shift, tokens, scale).to(images.dtype)  # a compiler makes one pass of the two
    else:
        normed = torch.addcmul(shift, tokens, scale, out=torch.empty_like(tokens))
    return images_of(normed.view(rows, height, width, channels))


class _GroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # PyTorch's name
        # PyTorch's kernel for CPUs knows the layout.
        if input.device.type == "cpu" or input.ndim != 4 or not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class _FirstConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # PyTorch's name
        return super().forward(input.contiguous(memory_format=torch.channels_last))


class _TemporalConvLayer(TemporalConvLayer):  # type: ignore[misc]  # diffusers is untyped
    def forward(self, hidden_states: Tensor, num_frames: int = 1) -> Tensor:
        rows, channels, height, width = hidden_states.shape
        tokens = tokens_of(hidden_states).reshape(rows // num_frames, num_frames, height * width, channels)
        clip = images_of(tokens)  # (batch, channels, frames, height * width)
        hidden = clip
        for stage in (self.conv1, self.conv2, self.conv3, self.conv4):
            *before, conv = stage
            for layer in before:
                hidden = layer(hidden)
            # (out, in, 3, 1, 1) in channels_last_3d is (out, in, 3, 1) in channels_last.
            hidden = F.conv2d(hidden, conv.weight.squeeze(-1), conv.bias, padding=(1, 0))
        return images_of(tokens_of(clip + hidden).reshape(rows, height, width, channels))


class _TransformerTemporalModel(TransformerTemporalModel):  # type: ignore[misc]  # diffusers is untyped
    def forward(
        self,
        hidden_states: Tensor,  # (batch * frames, channels, height, width)
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        num_frames: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        rows, channels, height, width = hidden_states.shape
        batch, positions = rows // num_frames, height * width
        clip = tokens_of(hidden_states).reshape(batch, num_frames, positions, channels)
        hidden = tokens_of(self.norm(images_of(clip)))  # (batch, frames, positions, channels)
        # The one copy: attention over time needs the frames of a position beside each other.
        hidden = self.proj_in(hidden.transpose(1, 2).reshape(batch * positions, num_frames, channels))
        for block in self.transformer_blocks:
            hidden = block(
                hidden,
                encoder_hidden_states=encoder_hidden_states,
                timestep=timestep,
                cross_attention_kwargs=cross_attention_kwargs,
                class_labels=class_labels,
            )
        hidden = self.proj_out(hidden).view(batch, positions, num_frames, channels)
        # The way back is part of the addition, which writes as its first term lies.
        clip = clip + hidden.transpose(1, 2)
        output = images_of(clip.reshape(rows, height, width, channels))
        return TransformerTemporalModelOutput(sample=output) if return_dict else (output,)


class _Transformer2DModel(Transformer2DModel):  # type: ignore[misc]  # diffusers is untyped
    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        def as_images(tokens: Tensor) -> Tensor:
            return images_of(tokens.reshape(batch_size, height, width, -1))

        if self.use_linear_projection:
            return as_images(self.proj_out(hidden_states)) + residual
        return cast(Tensor, self.proj_out(as_images(hidden_states)) + residual)


class _Upsample2D(Upsample2D):  # type: ignore[misc]  # diffusers is untyped
    def forward(self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        if output_size is not None:  # of sides that do not double evenly
            return cast(Tensor, super().forward(hidden_states, output_size, *args, **kwargs))
        rows, channels, height, width = hidden_states.shape
        doubled = tokens_of(hidden_states)[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
        return cast(Tensor, self.conv(images_of(doubled.reshape(rows, 2 * height, 2 * width, channels))))


def channels_last(unet: nn.Module) -> Change:
    """Lay out a video U-Net's convolutions, and all between them, in channels last.

    Works on diffusers' `I2VGenXLUNet` and `UNet3DConditionModel`; of `UNetMotionModel` and
    `UNetSpatioTemporalConditionModel` the modules over time stay as they are. The result is the same
    up to rounding. State-dict names, shapes and types stay; strides of convolution weights do not, and
    a compiled program holds on to those that it was built with.
    """
    conv_in = getattr(unet, "conv_in", None)
    if not isinstance(conv_in, nn.Conv2d):
        raise NotApplicable(f"layout: {type(unet).__name__} is no U-Net of two-dimensional convolutions")
    if isinstance(conv_in, _FirstConv):
        raise NotApplicable("layout: it is in place already")
    for name, module in unet.named_modules():
        if type(module) is TemporalConvLayer:
            _check(name, module)
    undos = [_as(conv_in, _FirstConv)]
    for module in unet.modules():
        if isinstance(module, nn.Conv2d):
            undos.append(_lay_out(module.weight, torch.channels_last))
        elif (own := _OWN.get(type(module))) and (own is not _Upsample2D or _is_plain(module)):
            undos.append(_as(module, own))
        if isinstance(module, _TemporalConvLayer):
            convs = [stage[-1] for stage in (module.conv1, module.conv2, module.conv3, module.conv4)]
            undos += [_lay_out(conv.weight, torch.channels_last_3d) for conv in convs]

    def undo() -> None:
        for back in reversed(undos):
            back()

    layers = sum(isinstance(module, nn.Conv2d | _TemporalConvLayer) for module in unet.modules())
    return Change("layout", f"{layers} convolution layers and all between them in channels last", undo)


_OWN: dict[type[nn.Module], type[nn.Module]] = {
    nn.GroupNorm: _GroupNorm,
    TemporalConvLayer: _TemporalConvLayer,
    TransformerTemporalModel: _TransformerTemporalModel,
    Transformer2DModel: _Transformer2DModel,
    Upsample2D: _Upsample2D,
}


def _is_plain(upsample: Any) -> bool:
    """Return whether it doubles the sides and convolves, as the U-Nets' own do."""
    plain = upsample.interpolate and upsample.use_conv and upsample.name == "conv"
    return bool(plain and upsample.norm is None and not upsample.use_conv_transpose)


def _check(name: str, layer: Any) -> None:
    """Refuse a layer over time whose convolutions are not those that are replaced."""
    for part in ("conv1", "conv2", "conv3", "conv4"):
        conv = getattr(layer, part)[-1]
        if not isinstance(conv, nn.Conv3d):
            raise NotApplicable(f"layout: {name}.{part} ends in a {type(conv).__name__}, not in a Conv3d")
        if conv.kernel_size != (3, 1, 1) or conv.padding != (1, 0, 0):
            raise NotApplicable(f"layout: {name}.{part} has a kernel of {conv.kernel_size}, which is not supported")


def _as(module: nn.Module, own: type[nn.Module]) -> Callable[[], None]:
    """Take a module to a subclass of its class; gives what takes it back."""
    before = type(module)
    module.__class__ = own

    def undo() -> None:
        module.__class__ = before

    return undo


def _lay_out(weight: Tensor, memory_format: torch.memory_format) -> Callable[[], None]:
    """Give a weight other strides; gives what puts its own back."""
    size, strides = weight.size(), weight.stride()
    weight.data = weight.data.contiguous(memory_format=memory_format)

    def undo() -> None:
        data = weight.data  # which may have been loaded anew, or cast, since
        weight.data = torch.empty_strided(size, strides, dtype=data.dtype, device=data.device).copy_(data)

    return undo
