"""What is computed at one step, from tensors alone: a module that can be traced, compiled and exported.

The picture, the text and the frame rate are the same at every step, and so is all that a U-Net makes of them before
they meet the noisy clip: image latents and their encoder over time, the embedding of the frame rate, and the keys and
values of every cross-attention. `prepare` computes them once a request; `forward` is what is left to do at a step, and
a program made of it holds nothing that runs only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from diffusers import HunyuanVideo15Transformer3DModel, I2VGenXLUNet, UNetMotionModel
from torch import Tensor, nn

from ..model.families import Cond, Family
from .context import ClipAttnProcessor, cross_attentions

Prepared = tuple[Tensor, ...]
Step = Callable[..., Tensor]
"""`(latents, timestep, *prepared) -> prediction`, with timestep `(1,)` of float32."""


class StepModule(nn.Module):
    """What a family's network computes at one step, from tensors alone."""

    folds_context: ClassVar[bool] = False
    """Whether the network's context has to be folded (`fold_context`) first."""

    def __init__(self, family: Family, network: nn.Module) -> None:
        super().__init__()
        self.family = family
        # Weights keep the names that programs know them by; those of two experts are alike, and so are their programs.
        self.add_module(family.networks[0], network)
        self.names: tuple[str, ...] = ()
        self.detail = "the network is called with what was encoded once a request"

    @property
    def network(self) -> Any:
        """Return the network of the pipeline."""
        return getattr(self, self.family.networks[0])

    def prepare(self, cond: Cond) -> Prepared:
        """Return what `forward` takes beside latents and timestep.

        All are contiguous: a compiled program reads them by the strides it was built for.
        """
        self.names = tuple(sorted(cond))
        return tuple(cond[name].contiguous() for name in self.names)

    def forward(self, latents: Tensor, timestep: Tensor, *prepared: Tensor) -> Tensor:
        return self.family.predict(self.network, latents, timestep, self.cond_of(prepared))

    def cond_of(self, prepared: Prepared) -> Cond:
        """Return what `prepare` was given."""
        return dict(zip(self.names, prepared, strict=True))


class ContextStep(StepModule):
    """A U-Net whose keys and values of the context are computed once a request.

    What is prepared are the U-Net's own tensors, then keys and values.
    """

    folds_context = True

    def __init__(self, family: Family, network: nn.Module) -> None:
        super().__init__(family, network)
        self.layers = list(cross_attentions(network).values())
        self.detail = f"keys and values of {len(self.layers)} layers are computed once a request"

    def prepare(self, cond: Cond) -> Prepared:
        context, own = self._prepare(cond)
        projected: list[Tensor] = []
        for attn in self.layers:
            projected += cast(ClipAttnProcessor, attn.processor).project(attn, context)
        return tuple(tensor.contiguous() for tensor in (*own, *projected))

    def forward(self, latents: Tensor, timestep: Tensor, *prepared: Tensor) -> Tensor:
        split = len(prepared) - 2 * len(self.layers)
        with self._context(prepared[split:]):
            return self._forward(latents, timestep, *prepared[:split])

    @contextmanager
    def _context(self, projected: tuple[Tensor, ...]) -> Iterator[None]:
        processors = [cast(ClipAttnProcessor, attn.processor) for attn in self.layers]
        for k, processor in enumerate(processors):
            processor.keys_values = projected[2 * k], projected[2 * k + 1]
        try:
            yield
        finally:
            for processor in processors:
                processor.keys_values = None

    def _prepare(self, cond: Cond) -> tuple[Tensor, Prepared]:
        """Return the context `(batch, tokens, width)`, and the U-Net's own tensors."""
        raise NotImplementedError

    def _forward(self, latents: Tensor, timestep: Tensor, *own: Tensor) -> Tensor:
        raise NotImplementedError


class I2VGenXLStep(ContextStep):
    """Computes `I2VGenXLUNet`; its own tensors are the encoded image latents and the embedding of the frame rate.

    A U-Net conditioned on the guidance scale has a third: what it adds to the embedding of the timestep.
    """

    def _prepare(self, cond: Cond) -> tuple[Tensor, Prepared]:
        unet, latents = self.network, cond["image_latents"]
        rate = unet.fps_embedding(unet.time_proj(cond["fps"]).to(latents.dtype))  # (batch, width)
        batch, channels, frames, height, width = latents.shape
        flat = latents.transpose(1, 2).flatten(0, 1)  # (batch * frames, 4, h, w)
        positions = unet.image_latents_context_embedding(latents[:, :, 0]).flatten(2).transpose(1, 2)
        tokens = unet.context_embedding(cond["image_embeds"]).view(-1, channels, unet.config.cross_attention_dim)
        context = torch.cat([cond["text"], positions, tokens], dim=1)
        encoded = unet.image_latents_proj_in(flat).unflatten(0, (batch, frames))  # (batch, frames, 4, h, w)
        encoded = encoded.permute(0, 3, 4, 1, 2).reshape(batch * height * width, frames, channels)
        encoded = unet.image_latents_temporal_encoder(encoded)
        encoded = encoded.view(batch, height, width, frames, channels).permute(0, 4, 3, 1, 2).contiguous()
        if "guidance" not in cond:
            return context, (encoded, rate)
        return context, (encoded, rate, unet.time_embedding.cond_proj(cond["guidance"]))  # (batch, width)

    def _forward(self, latents: Tensor, timestep: Tensor, *own: Tensor) -> Tensor:
        unet, (image, rate, *guidance) = self.network, own
        frames = latents.shape[2]
        time = unet.time_proj(timestep.expand(latents.shape[0])).to(latents.dtype)
        time = unet.time_embedding(time + guidance[0] if guidance else time)
        temb = (time + rate).repeat_interleave(frames, dim=0, output_size=latents.shape[0] * frames)
        hidden = torch.cat([latents, image], dim=1).transpose(1, 2).flatten(0, 1)  # (batch * frames, 8, h, w)
        hidden = unet.transformer_in(unet.conv_in(hidden), num_frames=frames, return_dict=False)[0]
        skips = [hidden]
        for block in unet.down_blocks:
            hidden, made = block(hidden_states=hidden, temb=temb, num_frames=frames)
            skips += made
        hidden = unet.mid_block(hidden, temb, num_frames=frames)
        for block in unet.up_blocks:
            count = len(block.resnets)
            taken, skips = tuple(skips[-count:]), skips[:-count]
            size = skips[-1].shape[2:] if skips else None  # of sides that do not halve evenly
            hidden = block(
                hidden_states=hidden, temb=temb, res_hidden_states_tuple=taken, upsample_size=size, num_frames=frames
            )
        hidden = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
        return cast(Tensor, hidden.unflatten(0, (-1, frames)).transpose(1, 2))


class MotionStep(ContextStep):
    """Computes `UNetMotionModel` with image channels (PIA); its own tensor is mask and image latents, side by side.

    A U-Net conditioned on the guidance scale has a second: the embedding of the scale.
    """

    def _prepare(self, cond: Cond) -> tuple[Tensor, Prepared]:
        picture = torch.cat([cond["image_mask"], cond["image_latents"]], dim=1)
        return cond["text"], (picture, cond["guidance"]) if "guidance" in cond else (picture,)

    def _forward(self, latents: Tensor, timestep: Tensor, *own: Tensor) -> Tensor:
        sample = torch.cat([latents, own[0]], dim=1)  # (batch, 9, frames, h, w)
        guidance = own[1] if len(own) > 1 else None
        output = self.network(sample, timestep, encoder_hidden_states=None, timestep_cond=guidance, return_dict=False)
        return cast(Tensor, output[0])


_TEXT, _GLYPHS, _IMAGE = range(3)
"""Kinds of tokens, as the network numbers them."""


class HunyuanVideo15Step(StepModule):
    """Computes `HunyuanVideo15Transformer3DModel`, for a compiler in shapes that no prompt decides.

    diffusers 0.42.1 picks tokens by boolean masks, to put padding behind all that is none: what it picks has as many
    rows as the prompt has tokens. A stable sort of the masks gives the same order at one length.
    """

    def forward(self, latents: Tensor, timestep: Tensor, *prepared: Tensor) -> Tensor:
        compiles = torch.compiler.is_compiling() or torch.compiler.is_exporting()
        network: Any = _FixedShapes(self.network) if compiles else self.network
        return self.family.predict(network, latents, timestep, self.cond_of(prepared))


class _FixedShapes:
    """Stands for the network: its `forward` without picking, with its arguments and its result."""

    def __init__(self, network: Any) -> None:
        self.network, self.config = network, network.config

    def __call__(
        self,
        *,
        hidden_states: Tensor,
        timestep: Tensor,
        timestep_r: Tensor | None,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        encoder_hidden_states_2: Tensor,
        encoder_attention_mask_2: Tensor,
        image_embeds: Tensor,
        return_dict: bool,
    ) -> tuple[Tensor]:
        assert not return_dict
        net = self.network
        rotary = net.rope(hidden_states)
        time = net.time_embed(timestep, timestep_r=timestep_r)
        given = (image_embeds != 0).any()  # the branch without the picture has zeros
        image = net.image_embedder(image_embeds)
        kinds = (
            (_IMAGE, image * given, given.expand(image.shape[:2])),
            (_GLYPHS, net.context_embedder_2(encoder_hidden_states_2), encoder_attention_mask_2.bool()),
            (
                _TEXT,
                net.context_embedder(encoder_hidden_states, timestep, encoder_attention_mask),
                encoder_attention_mask.bool(),
            ),
        )
        valid = torch.cat([mask for _, _, mask in kinds], dim=1)  # (batch, tokens)
        tokens = torch.cat([self._of_kind(*one) for one in kinds], dim=1)  # (batch, tokens, width)
        order = valid.logical_not().int().argsort(dim=1, stable=True)
        tokens, valid = tokens.gather(1, order[..., None].expand_as(tokens)), valid.gather(1, order)
        hidden = net.x_embedder(hidden_states)
        for block in net.transformer_blocks:
            hidden, tokens = block(hidden, tokens, time, valid, rotary)
        hidden = net.proj_out(net.norm_out(hidden, time))
        return (self._unpatched(hidden, hidden_states.shape),)

    def _of_kind(self, kind: int, tokens: Tensor, mask: Tensor) -> Tensor:
        embedding = self.network.cond_type_embed(torch.full(tokens.shape[:2], kind, device=tokens.device))
        tokens = tokens + embedding
        return tokens if kind == _IMAGE else tokens * mask[..., None].to(tokens.dtype)

    def _unpatched(self, hidden: Tensor, shape: torch.Size) -> Tensor:
        frames, side = self.config.patch_size_t, self.config.patch_size
        batch, _, depth, height, width = shape
        grid = hidden.reshape(batch, depth // frames, height // side, width // side, -1, frames, side, side)
        return grid.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


_STEPS: dict[type[nn.Module], type[StepModule]] = {
    I2VGenXLUNet: I2VGenXLStep,
    UNetMotionModel: MotionStep,
    HunyuanVideo15Transformer3DModel: HunyuanVideo15Step,
}


def step_of(network: nn.Module) -> type[StepModule]:
    """Return the step module for a network: one of its own, or the plain one."""
    return next((step for kind, step in _STEPS.items() if isinstance(network, kind)), StepModule)


def is_entered(network: nn.Module) -> bool:
    """Return whether its step module calls the network's layers one by one, past its own `forward`."""
    return issubclass(step_of(network), ContextStep)
