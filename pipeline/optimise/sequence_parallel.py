"""One request's U-Net pass spread over several processes.

DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv 2309.14509) applied to the frames of a clip. Layers that
look at single frames (convolutions, ResNets, spatial transformers) work on each rank's slice of the
frames, with nothing to exchange. Layers that look along time need all frames of a position, but a few
positions are enough: an all-to-all trades "some frames, all positions" for "all frames, some positions" before
each of them, and back afterwards::

    (batch * local frames, channels, height, width)  <->  (batch * frames, channels, local positions, 1)

Shares need not be equal. The group norms of such a layer normalise over all frames and positions of a
clip; their statistics are combined over the ranks.

Every rank is given the whole request, and every rank's prediction is the whole clip's, so that the
solver, guidance and decoding stay as they are and all ranks stay in step. A rank that stops alone, in a
callback for instance, leaves the others waiting until the group's timeout. For inference: gradients do
not pass through the exchange.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn

from ..model.families import Cond
from ..model.sampling import Predict
from .base import Change, NotApplicable
from .prepared import PreparedDenoiser, as_input, prepare_once
from .ranks import Ranks, ranks_for, shares
from .step_modules import StepModule

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

TEMPORAL_LAYERS = (TemporalConvLayer, TransformerTemporalModel, AnimateDiffTransformer3D)
"""diffusers' layers that look along time. They treat each position alone but for their group norms, which
is what lets them work on a share of the positions."""


class FrameSplit:
    """What each rank has of the clip whose pass is under way, and the exchange around temporal layers.

    Attributes:
        frames: each rank's number of frames; None outside a pass, where the U-Net works as ever.
        positions: each rank's number of positions while a temporal layer works, else None.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.frames: list[int] | None = None
        self.positions: list[int] | None = None
        self._side = 0

    @contextmanager
    def over(self, frames: list[int]) -> Iterator[None]:
        """Run a pass in which each rank has this many frames."""
        self.frames = frames
        try:
            yield
        finally:
            self.frames = self.positions = None

    def enter(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a temporal layer: from some frames of all positions to all frames of some positions."""
        if self.frames is None:
            return None
        call = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
        hidden = call["hidden_states"].unflatten(0, (-1, self.frames[self.ranks.rank])).flatten(3)
        self._side = call["hidden_states"].shape[-1]
        self.positions = shares(hidden.shape[3], self.ranks.size)
        hidden = self.ranks.all_to_all(
            hidden, 3, self.positions, 1, self.frames
        )  # (batch, frames, channels, positions)
        if not hidden.shape[3]:
            # Fewer positions than ranks. Convolutions refuse an empty side: work on a position that counts for nothing.
            hidden = hidden.new_zeros(*hidden.shape[:3], 1)
        call["hidden_states"] = hidden.flatten(0, 1).unsqueeze(-1)  # (batch * frames, channels, positions, 1)
        call["num_frames"] = sum(self.frames)
        return (), call

    def leave(self, _layer: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """After a temporal layer: back to some frames of all positions."""
        if self.frames is None or self.positions is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.squeeze(-1).unflatten(0, (-1, sum(self.frames)))[..., : self.positions[self.ranks.rank]]
        hidden = self.ranks.all_to_all(
            hidden, 1, self.frames, 3, self.positions
        )  # (batch, frames, channels, positions)
        self.positions = None
        hidden = hidden.flatten(0, 1).unflatten(-1, (-1, self._side))  # (batch * local frames, channels, h, w)
        return (hidden,) if isinstance(output, tuple) else hidden


class SynchronisedGroupNorm(nn.GroupNorm):
    """A temporal layer's group norm over the positions of all ranks; outside a split pass, the plain one.

    Shares its weights with the layer that it stands for, under the same names.
    """

    def __init__(self, norm: nn.GroupNorm, split: FrameSplit) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, norm.affine, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.train(norm.training)
        self._split = split

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(batch, channels, frames, local positions, 1)`."""
        positions = self._split.positions
        if positions is None:
            return super().forward(x)
        values = x.float().reshape(x.shape[0], self.num_groups, -1)  # (batch, groups, elements)
        variance, mean = torch.var_mean(values, dim=-1, correction=0)
        variance, mean = self._combine(self._split.ranks.all_gather(torch.stack([variance, mean])), positions)
        values = (values - mean.unsqueeze(-1)) * torch.rsqrt(variance + self.eps).unsqueeze(-1)
        if self.affine:
            values = values.reshape(*x.shape[:2], -1)
            values = values * self.weight.float().unsqueeze(-1) + self.bias.float().unsqueeze(-1)
        return values.reshape(x.shape).to(x.dtype)

    @staticmethod
    def _combine(moments: list[Tensor], positions: list[int]) -> tuple[Tensor, Tensor]:
        """Variance and mean of the whole from those of its parts (Chan et al. 1983).

        The variances about the parts' own means are summed, rather than squares, whose difference
        would lose its digits where the mean is large.
        """
        variances, means = torch.stack(moments, dim=1).unbind()  # (ranks, batch, groups) each
        mean, variance = torch.zeros_like(means[0]), torch.zeros_like(means[0])
        for count, own in zip(positions, means, strict=True):
            mean += count / sum(positions) * own
        for count, own, about_own in zip(positions, means, variances, strict=True):
            variance += count / sum(positions) * (about_own + (own - mean) ** 2)
        return variance, mean


def temporal_layers(unet: nn.Module) -> dict[str, nn.Module]:
    """Layers that look along time, by their path in the U-Net."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, TEMPORAL_LAYERS)}


def exchange_around(layers: Mapping[str, nn.Module], split: FrameSplit) -> Callable[[], None]:
    """Put the exchange around temporal layers, and synchronise their group norms.

    Returns:
        What takes it away again.
    """
    handles, replaced = [], []
    for layer in layers.values():
        handles.append(layer.register_forward_pre_hook(split.enter, with_kwargs=True))
        handles.append(layer.register_forward_hook(split.leave))
        for parent in list(layer.modules()):
            for name, norm in parent.named_children():
                if isinstance(norm, nn.GroupNorm):
                    replaced.append((parent, name, norm))
                    setattr(parent, name, SynchronisedGroupNorm(norm, split))

    def undo() -> None:
        for handle in handles:
            handle.remove()
        for parent, name, norm in replaced:
            setattr(parent, name, norm)

    return undo


class SequenceParallelDenoiser:
    """Runs a step module, with the exchange around its temporal layers (`exchange_around`), on this rank's frames."""

    def __init__(self, module: StepModule, split: FrameSplit) -> None:
        self.module, self.split = module, split

    def start(self, cond: Cond) -> Predict:
        """Begin a request, the same one on all ranks.

        The prediction function takes the whole clip's latents and gives the whole prediction on every rank.

        Raises:
            NotApplicable: there are fewer frames than processes.
            RanksDiffer: the ranks were not given the same request, or differ in latents or timestep at a step.
        """
        ranks, split, module = self.split.ranks, self.split, self.module
        latents = cond["image_latents"]
        ranks.check_equal(dict(cond), latents.device)
        count = latents.shape[2]
        if count < ranks.size:
            raise NotApplicable(
                f"sequence parallel: {count} frames cannot be spread over {ranks.size} processes; "
                f"ask for {ranks.size} frames or more, or start fewer processes"
            )
        frames = shares(count, ranks.size)
        # Of what a step module takes, that which has frames is of five dimensions, and nothing else is.
        prepared = [ranks.take_frames(x, frames) if x.ndim == 5 else x for x in module.prepare(cond)]

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            time = as_input(timestep, latents)
            # At every step, since samplers that draw noise can part ways at any.
            ranks.check_equal({"latents": latents, "timestep": time}, latents.device)
            with split.over(frames):
                predicted = module(ranks.take_frames(latents, frames), time, *prepared)
            return ranks.join(predicted, frames, 2)

        return predict


def split_frames(pipe: ImageAnimationPipeline) -> Change:
    """Spread the U-Net's passes over all processes; each must call this, and then animate the same.

    Their backend has to reach the U-Net's device: NCCL for one on GPUs, gloo for one on the CPU.

    Raises:
        RanksDiffer: the ranks' U-Nets are not the same.
    """
    if isinstance(pipe.denoiser, SequenceParallelDenoiser):
        raise NotApplicable("sequence parallel: it is in place already")
    ranks = ranks_for(pipe, "sequence parallel")
    layers = temporal_layers(pipe.network)
    if not layers:
        raise NotApplicable(f"sequence parallel: unet: {type(pipe.network).__name__} has no known temporal layer")
    prepared = None if isinstance(pipe.denoiser, PreparedDenoiser) else prepare_once(pipe)
    before = cast(PreparedDenoiser, pipe.denoiser)
    if before.run is not before.module:
        raise NotApplicable("sequence parallel: a compiled or packaged program has taken the step module's place")
    split = FrameSplit(ranks)
    remove = exchange_around(layers, split)
    pipe.denoiser = SequenceParallelDenoiser(before.module, split)

    def undo() -> None:
        pipe.denoiser = before
        remove()
        if prepared is not None:
            prepared.undo()

    detail = f"frames are spread over {ranks.size} processes, with an exchange around {len(layers)} temporal layers"
    return Change("sequence parallel", detail, undo)
