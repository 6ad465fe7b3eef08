"""All that does not change from step to step, computed once a request.

The picture, the text and the frame rate are the same at every step, and so is all that the U-Net
makes of them before they meet the noisy clip: image latents and their encoder over time, the
embedding of the frame rate, and the keys and values of every cross-attention. `prepare` computes
them; `forward` is what is left to do at a step. It takes tensors alone, so that it can be traced,
compiled and exported, and the exported program holds nothing that runs only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from diffusers import I2VGenXLUNet, UNetMotionModel
from torch import Tensor, nn

from ..model.families import Cond, Family
from ..model.sampling import PlainDenoiser, Predict
from .base import Change, NotApplicable
from .context import ClipAttnProcessor, cross_attentions, fold_context

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

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
        cond = dict(zip(self.names, prepared, strict=True))
        return self.family.predict(self.network, latents, timestep, cond)


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


_STEPS: dict[type[nn.Module], type[StepModule]] = {I2VGenXLUNet: I2VGenXLStep, UNetMotionModel: MotionStep}


def is_entered(network: nn.Module) -> bool:
    """Return whether its step module calls the network's layers one by one, past its own `forward`."""
    return isinstance(network, tuple(_STEPS))


class PreparedDenoiser:
    """Computes a request's constants once, and runs the step module.

    Attributes:
        run: what is called at each step; runtimes put a traced, compiled or packaged program here.
    """

    def __init__(self, module: StepModule) -> None:
        self.module = module
        self.run: Step = module

    def start(self, cond: Cond) -> Predict:
        prepared = self.module.prepare(cond)
        return lambda latents, timestep: self.run(latents, as_input(timestep, latents), *prepared)


class PreparedExperts:
    """The same for a checkpoint of several networks, of which the timestep chooses one.

    Attributes:
        each: a denoiser for each network, by the name of its component.
    """

    def __init__(self, pipe: ImageAnimationPipeline, each: Mapping[str, PreparedDenoiser]) -> None:
        self._pipe, self.each = pipe, each

    def start(self, cond: Cond) -> Predict:
        pipe = self._pipe
        family, parts = pipe.family, pipe.parts
        started = {name: denoiser.start(cond) for name, denoiser in self.each.items()}
        return lambda latents, timestep: started[family.network_at(parts, timestep)](latents, timestep)


def prepared_denoisers(pipe: ImageAnimationPipeline) -> list[PreparedDenoiser]:
    """Return the denoiser of each network, which must be those of `prepare_once`."""
    if isinstance(pipe.denoiser, PreparedExperts):
        return list(pipe.denoiser.each.values())
    if not isinstance(pipe.denoiser, PreparedDenoiser):
        raise NotApplicable(f"runtime: the denoiser is a {type(pipe.denoiser).__name__}; apply prepare_once first")
    return [pipe.denoiser]


def runs_program(pipe: ImageAnimationPipeline) -> bool:
    """Return whether a traced, compiled or packaged program stands in the place of a network."""
    prepared = isinstance(pipe.denoiser, PreparedDenoiser | PreparedExperts)
    return prepared and any(one.run is not one.module for one in prepared_denoisers(pipe))


def as_input(timestep: Tensor, latents: Tensor) -> Tensor:
    """Return a scalar timestep as the step module takes it: `(1,)`, float32, on the latents' device."""
    return timestep.reshape(1).to(device=latents.device, dtype=torch.float32)


def prepare_once(pipe: ImageAnimationPipeline) -> Change:
    """Compute what is the same at every step once a request: of a U-Net, keys and values of the context above all."""
    if isinstance(pipe.denoiser, PreparedDenoiser | PreparedExperts):
        raise NotApplicable("prepare: it is in place already")
    if not isinstance(pipe.denoiser, PlainDenoiser):
        raise NotApplicable(f"prepare: denoiser: {type(pipe.denoiser).__name__} is in the plain one's place")
    networks = {name: net for name in pipe.family.networks if (net := getattr(pipe, name)) is not None}
    modes = {module: module.training for network in networks.values() for module in network.modules()}
    folded: list[Change] = []
    each: dict[str, PreparedDenoiser] = {}
    for name, network in networks.items():
        kind = next((step for unet, step in _STEPS.items() if isinstance(network, unet)), StepModule)
        done = any(isinstance(attn.processor, ClipAttnProcessor) for attn in cross_attentions(network).values())
        if kind.folds_context and not done:
            folded.append(fold_context(network))
        each[name] = PreparedDenoiser(kind(pipe.family, network).eval())
    before, first = pipe.denoiser, next(iter(each.values()))
    pipe.denoiser = first if len(each) == 1 else PreparedExperts(pipe, each)

    def undo() -> None:
        pipe.denoiser = before
        for module, training in modes.items():
            module.training = training
        for change in folded:
            change.undo()

    return Change("prepare", first.module.detail, undo)
