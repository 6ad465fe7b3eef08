"""One request's U-Net pass spread over several processes.

DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv 2309.14509) applied to the frames of a clip. Layers that
look at single frames (convolutions, ResNets, spatial transformers) work on each rank's slice of the
frames, with nothing to exchange. Layers that look along time need all frames of a place, but a few
places are enough: an all-to-all trades "some frames, all places" for "all frames, some places" before
each of them, and back afterwards::

    (batch * local frames, channels, height, width)  <->  (batch * frames, channels, local places, 1)

Shares need not be equal. The group norms of such a layer normalise over all frames and places of a
clip; their statistics are combined over the ranks.

Every rank is given the whole request, and every rank's prediction is the whole clip's, so that the
solver, guidance and decoding stay as they are and all ranks stay in step. A rank that stops alone, in a
callback for instance, leaves the others waiting until the group's timeout. For inference: gradients do
not pass through the exchange.
"""

from __future__ import annotations

import functools
import inspect
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn

from ..denoiser import Predict
from ..errors import StillmotionError
from ..families import Conditioning
from .base import Change, NotApplicable
from .prepared import PreparedDenoiser, StepModule, as_input, prepare_once

if TYPE_CHECKING:
    from ..animation import ImageAnimationPipeline

TEMPORAL_LAYERS = (TemporalConvLayer, TransformerTemporalModel, AnimateDiffTransformer3D)
"""diffusers' layers that look along time. They treat each place alone but for their group norms, which
is what lets them work on a share of the places."""


class RanksDiffer(StillmotionError):
    """The processes were given different requests, noise or weights; the text names what differs."""


def shares(total: int, ranks: int) -> list[int]:
    """How many of `total` frames or places each rank has: as even as can be, the first ranks one more."""
    each, more = divmod(total, ranks)
    return [each + (rank < more) for rank in range(ranks)]


class Ranks:
    """The processes that work on one request, and what they exchange.

    All methods are collective: each rank calls them in the same order, or all wait.

    Args:
        group: None for all processes.

    Attributes:
        rank: of this process within the group.
        size: number of processes.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """The tensors of all ranks, which are of one shape, by rank."""
        gathered = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(gathered, x.contiguous(), group=self.group)
        return gathered

    def all_to_all(self, x: Tensor, give: int, given: list[int], take: int, taken: list[int]) -> Tensor:
        """Give away shares of one dimension, and take shares of another.

        Args:
            x: all of dimension `give`, and this rank's share of dimension `take`.
            given, taken: shares of the two dimensions by rank.

        Returns:
            This rank's share of dimension `give`, and all of dimension `take`.
        """
        shapes = [
            tuple({give: given[self.rank], take: count}.get(dim, side) for dim, side in enumerate(x.shape))
            for count in taken
        ]
        received_sizes = [math.prod(shape) for shape in shapes]
        received = x.new_empty(sum(received_sizes))
        dist.all_to_all_single(
            received,
            torch.cat([part.flatten() for part in x.split(given, dim=give)]),
            output_split_sizes=received_sizes,
            input_split_sizes=[x.numel() // x.shape[give] * count for count in given],
            group=self.group,
        )
        parts = zip(received.split(received_sizes), shapes, strict=True)
        return torch.cat([part.view(shape) for part, shape in parts], dim=take)

    def take_frames(self, x: Tensor, frames: list[int]) -> Tensor:
        """This rank's slice of `(batch, channels, frames, height, width)`."""
        return torch.split(x, frames, dim=2)[self.rank].contiguous()

    def join_frames(self, x: Tensor, frames: list[int]) -> Tensor:
        """The whole of `(batch, channels, frames, height, width)` from each rank's slice of the frames."""
        # Not every backend gathers unequal shapes; a frame of padding is cheap.
        padded = nn.functional.pad(x, (0, 0, 0, 0, 0, max(frames) - x.shape[2]))
        parts = zip(self.all_gather(padded), frames, strict=True)
        return torch.cat([part[:, :, :count] for part, count in parts], dim=2)

    def check_equal(self, tensors: Mapping[str, Tensor | None], device: torch.device) -> None:
        """See that all ranks hold the same tensors, by fingerprints of 80 bytes.

        A difference in shape would make the exchange hang, one in value would give a wrong clip.
        Differences of rounding pass, since ranks may have chosen different kernels.

        Args:
            tensors: with the names that an error calls them by; the same names on all ranks.
            device: one that the group's backend reaches.

        Raises:
            RanksDiffer: on all ranks, naming the first tensor that differs.
        """
        mine = torch.stack([_fingerprint(x, device) for x in tensors.values()])  # (tensors, 10)
        prints = torch.stack(self.all_gather(mine)).cpu()  # (ranks, tensors, 10)
        for (name, x), rows in zip(tensors.items(), prints.unbind(1), strict=True):
            if not bool((rows[:, 0] == rows[0, 0]).all()):
                raise RanksDiffer(f"{name}: shape or type is not the same on all {self.size} processes")
            tolerance = _tolerance(x)
            for rank, row in enumerate(rows):
                if not torch.allclose(row, rows[0], rtol=tolerance, atol=tolerance, equal_nan=True):
                    raise RanksDiffer(
                        f"{name}: process {rank} has other values than process 0; "
                        "give all processes the same request, seed and model"
                    )


_PROBES, _PERIOD = 8, 4096


@functools.cache
def _probes(device: torch.device) -> Tensor:
    """Random signs, `(4096, 8)`, the same in every process."""
    signs = torch.randint(0, 2, (_PERIOD, _PROBES), generator=torch.Generator().manual_seed(0))
    return (2.0 * signs - 1.0).to(device)


def _fingerprint(x: Tensor | None, device: torch.device) -> Tensor:
    """`(10,)` of float64: shape and type as one number, root mean square, 8 random projections.

    For a relative difference e between two tensors, each projection differs by about e times a draw
    from a unit normal distribution, however many elements there are.
    """
    label = "none" if x is None else f"{x.dtype} {tuple(x.shape)}"
    found = torch.zeros(2 + _PROBES, dtype=torch.float64, device=device)
    found[0] = zlib.crc32(label.encode())
    if x is not None and x.numel():
        values = x.detach().to(device, torch.float32).flatten()
        rows = nn.functional.pad(values, (0, -values.numel() % _PERIOD)).view(-1, _PERIOD)
        # Each row counts in its own way, or two rows that have changed places would look the same.
        turns = torch.arange(rows.shape[0], device=device).cos()
        norm = torch.linalg.vector_norm(values)
        found[1] = norm / math.sqrt(values.numel())
        found[2:] = turns @ (rows @ _probes(device)) / norm.clamp_min(torch.finfo(torch.float32).tiny)
    return found


def _tolerance(x: Tensor | None) -> float:
    """A few roundings of the type, and no less than what kernels of float32 differ by."""
    return max(1e-4, 8 * torch.finfo(x.dtype).eps) if x is not None and x.is_floating_point() else 1e-4


class FrameSplit:
    """What each rank has of the clip whose pass is under way, and the exchange around temporal layers.

    Attributes:
        frames: each rank's number of frames; None outside a pass, where the U-Net works as ever.
        places: each rank's number of places while a temporal layer works, else None.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.frames: list[int] | None = None
        self.places: list[int] | None = None
        self._side = 0

    @contextmanager
    def over(self, frames: list[int]) -> Iterator[None]:
        """A pass in which each rank has this many frames."""
        self.frames = frames
        try:
            yield
        finally:
            self.frames = self.places = None

    def enter(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a temporal layer: from some frames of all places to all frames of some places."""
        if self.frames is None:
            return None
        call = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
        hidden = call["hidden_states"].unflatten(0, (-1, self.frames[self.ranks.rank])).flatten(3)
        self._side = call["hidden_states"].shape[-1]
        self.places = shares(hidden.shape[3], self.ranks.size)
        hidden = self.ranks.all_to_all(hidden, 3, self.places, 1, self.frames)  # (batch, frames, channels, places)
        if not hidden.shape[3]:
            # Fewer places than ranks. Convolutions refuse an empty side: work on a place that counts for nothing.
            hidden = hidden.new_zeros(*hidden.shape[:3], 1)
        call["hidden_states"] = hidden.flatten(0, 1).unsqueeze(-1)  # (batch * frames, channels, places, 1)
        call["num_frames"] = sum(self.frames)
        return (), call

    def leave(self, _layer: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """After a temporal layer: back to some frames of all places."""
        if self.frames is None or self.places is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.squeeze(-1).unflatten(0, (-1, sum(self.frames)))[..., : self.places[self.ranks.rank]]
        hidden = self.ranks.all_to_all(hidden, 1, self.frames, 3, self.places)  # (batch, frames, channels, places)
        self.places = None
        hidden = hidden.flatten(0, 1).unflatten(-1, (-1, self._side))  # (batch * local frames, channels, h, w)
        return (hidden,) if isinstance(output, tuple) else hidden


class SynchronisedGroupNorm(nn.GroupNorm):
    """A temporal layer's group norm over the places of all ranks; outside a split pass, the plain one.

    Shares its weights with the layer that it stands for, under the same names.
    """

    def __init__(self, norm: nn.GroupNorm, split: FrameSplit) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, norm.affine, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.train(norm.training)
        self._split = split

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(batch, channels, frames, local places, 1)`."""
        places = self._split.places
        if places is None:
            return super().forward(x)
        values = x.float().reshape(x.shape[0], self.num_groups, -1)  # (batch, groups, elements)
        variance, mean = torch.var_mean(values, dim=-1, correction=0)
        variance, mean = self._combine(self._split.ranks.all_gather(torch.stack([variance, mean])), places)
        values = (values - mean.unsqueeze(-1)) * torch.rsqrt(variance + self.eps).unsqueeze(-1)
        if self.affine:
            values = values.reshape(*x.shape[:2], -1)
            values = values * self.weight.float().unsqueeze(-1) + self.bias.float().unsqueeze(-1)
        return values.reshape(x.shape).to(x.dtype)

    @staticmethod
    def _combine(moments: list[Tensor], places: list[int]) -> tuple[Tensor, Tensor]:
        """Variance and mean of the whole from those of its parts (Chan et al. 1983).

        The variances about the parts' own means are summed, rather than squares, whose difference
        would lose its digits where the mean is large.
        """
        variances, means = torch.stack(moments, dim=1).unbind()  # (ranks, batch, groups) each
        mean, variance = torch.zeros_like(means[0]), torch.zeros_like(means[0])
        for count, own in zip(places, means, strict=True):
            mean += count / sum(places) * own
        for count, own, about_own in zip(places, means, variances, strict=True):
            variance += count / sum(places) * (about_own + (own - mean) ** 2)
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
    """Runs a step module on this rank's frames, between the exchange that the others take part in.

    Args:
        module: with the exchange around its temporal layers (`exchange_around`).
        split: that the exchange goes by.
    """

    def __init__(self, module: StepModule, split: FrameSplit) -> None:
        self.module, self.split = module, split

    def start(self, conditioning: Conditioning) -> Predict:
        """Begin a request, the same one on all ranks.

        Returns:
            A prediction function that takes the whole clip's latents and gives the whole prediction
            on every rank. It raises `RanksDiffer` where latents or timesteps are not the same.

        Raises:
            NotApplicable: there are fewer frames than processes.
            RanksDiffer: the ranks were not given the same request.
        """
        ranks, split, module = self.split.ranks, self.split, self.module
        image = conditioning.image
        device = image.latents.device
        named = {
            "text": conditioning.text,
            "image latents": image.latents,
            "image embedding": image.embedding,
            "image mask": image.mask,
            "fps": conditioning.fps,
            "guidance": conditioning.guidance,
        }
        ranks.check_equal(named, device)
        count = image.latents.shape[2]
        if count < ranks.size:
            raise NotApplicable(
                f"sequence parallel: {count} frames cannot be spread over {ranks.size} processes; "
                f"ask for {ranks.size} frames or more, or start fewer processes"
            )
        frames = shares(count, ranks.size)
        # Of what a step module takes, that which has frames is of five dimensions, and nothing else is.
        prepared = [ranks.take_frames(x, frames) if x.ndim == 5 else x for x in module.prepare(conditioning)]

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            time = as_input(timestep, latents)
            # At every step, since samplers that draw noise can part ways at any.
            ranks.check_equal({"latents": latents, "timestep": time}, latents.device)
            with split.over(frames):
                predicted = module(ranks.take_frames(latents, frames), time, *prepared)
            return ranks.join_frames(predicted, frames)

        return predict


def split_frames(pipe: ImageAnimationPipeline, group: dist.ProcessGroup | None = None) -> Change:
    """Spread the U-Net's passes over the processes of a group; each must call this, and then animate the same.

    Args:
        group: None for all processes. NCCL for a U-Net on GPUs, gloo for one on the CPU.

    Raises:
        NotApplicable: there is no process group, this process is not in it or its backend does not
            reach the U-Net's device, the U-Net is not a known one, or another program has taken the
            step module's place.
        RanksDiffer: the ranks' U-Nets are not the same.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise NotApplicable(
            "sequence parallel: torch.distributed is not initialised; start the processes with torchrun, "
            "and see pipeline.optimise.distributed"
        )
    ranks = Ranks(group)
    if ranks.rank < 0:
        raise NotApplicable("sequence parallel: this process is not in the group")
    device, backend = pipe.unet.device, dist.get_backend(group)
    if {"nccl": "cuda", "gloo": "cpu"}.get(backend, device.type) != device.type:
        raise NotApplicable(f"sequence parallel: the U-Net is on {device}, which {backend} does not serve")
    if isinstance(pipe.denoiser, SequenceParallelDenoiser):
        raise NotApplicable("sequence parallel: it is in place already")
    ranks.check_equal({f"weights of {type(pipe.unet).__name__}": _norms(pipe.unet)}, device)
    layers = temporal_layers(pipe.unet)
    if not layers:
        raise NotApplicable(f"sequence parallel: unet: {type(pipe.unet).__name__} has no known temporal layer")
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


def _norms(unet: nn.Module) -> Tensor:
    """The norm of each parameter, `(parameters,)`: enough to tell checkpoints apart."""
    return torch.stack([torch.linalg.vector_norm(p.detach(), dtype=torch.float32) for p in unet.parameters()])
