"""What the processes that share a clip do together: exchange tensors, and see that they were given the same."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import StillmotionError
from .base import NotApplicable

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline


class RanksDiffer(StillmotionError):
    """The processes were given different requests, noise or weights; the text names what differs."""


def ranks_for(pipe: ImageAnimationPipeline, change: str) -> Ranks:
    """Return the processes that can share a pipeline's passes. Collective.

    Their backend has to reach the network's device: NCCL for one on GPUs, gloo for one on the CPU.

    Args:
        change: name of what wants them, for errors.

    Raises:
        NotApplicable: there are no processes, or their backend does not reach the device.
        RanksDiffer: their networks are not the same.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise NotApplicable(
            f"{change}: torch.distributed is not initialised; start the processes with torchrun, "
            "and see pipeline.commands.distributed"
        )
    ranks, device, backend = Ranks(), pipe.network.device, dist.get_backend()
    if {"nccl": "cuda", "gloo": "cpu"}.get(backend, device.type) != device.type:
        raise NotApplicable(f"{change}: the network is on {device}, which {backend} does not serve")
    ranks.check_equal(
        {f"weights of {type(network).__name__}{' 2' * k}": _norms(network) for k, network in enumerate(pipe.networks)},
        device,
    )
    return ranks


def _norms(network: nn.Module) -> Tensor:
    """Return the norm of each parameter, `(parameters,)`: enough to tell checkpoints apart."""
    return torch.stack([torch.linalg.vector_norm(p.detach(), dtype=torch.float32) for p in network.parameters()])


def shares(total: int, ranks: int) -> list[int]:
    """Return how many of `total` frames or positions each rank has: as even as can be, the first ranks one more."""
    each, more = divmod(total, ranks)
    return [each + (rank < more) for rank in range(ranks)]


class Ranks:
    """The processes that work on one request, and what they exchange.

    All methods are collective: each rank calls them in the same order, or all wait.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, which are of one shape, by rank."""
        gathered = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(gathered, x.contiguous())
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
        )
        parts = zip(received.split(received_sizes), shapes, strict=True)
        return torch.cat([part.view(shape) for part, shape in parts], dim=take)

    def take_frames(self, x: Tensor, frames: list[int]) -> Tensor:
        """This rank's slice of `(batch, channels, frames, height, width)`."""
        return torch.split(x, frames, dim=2)[self.rank].contiguous()

    def join(self, x: Tensor, given: list[int], dim: int) -> Tensor:
        """Return the whole of a tensor from each rank's share of a dimension.

        Args:
            given: shares of the dimension by rank.
        """
        # Not every backend gathers unequal shapes; a place of padding is cheap.
        missing = list(x.shape)
        missing[dim] = max(given) - x.shape[dim]
        padded = torch.cat([x, x.new_zeros(missing)], dim) if missing[dim] else x
        parts = zip(self.all_gather(padded), given, strict=True)
        return torch.cat([part.narrow(dim, 0, count) for part, count in parts], dim)

    def check_equal(self, tensors: Mapping[str, Tensor | None], device: torch.device) -> None:
        """See that all ranks hold the same tensors, by fingerprints of 24 bytes.

        A difference in shape would make the exchange hang, one in value would give a wrong clip.
        Differences of rounding pass, since ranks may have chosen different kernels.

        Args:
            tensors: with the names that an error calls them by; the same names on all ranks.
            device: one that the group's backend reaches.

        Raises:
            RanksDiffer: on all ranks, naming the first tensor that differs.
        """
        mine = torch.stack([_fingerprint(x, device) for x in tensors.values()])  # (tensors, 3)
        prints = torch.stack(self.all_gather(mine)).cpu()  # (ranks, tensors, 3)
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


def _fingerprint(x: Tensor | None, device: torch.device) -> Tensor:
    """Return `(3,)` of float64: shape and type as one number, root mean square, and a projection.

    For a relative difference e between two tensors the projection differs by about e times a draw from a normal
    distribution, however many elements there are.
    """
    label = "none" if x is None else f"{x.dtype} {tuple(x.shape)}"
    found = torch.zeros(3, dtype=torch.float64, device=device)
    found[0] = zlib.crc32(label.encode())
    if x is not None and x.numel():
        values = x.detach().to(device, torch.float32).flatten()
        norm = torch.linalg.vector_norm(values)
        found[1] = norm / math.sqrt(values.numel())
        direction = torch.arange(values.numel(), dtype=torch.float32, device=device).cos()
        found[2] = values @ direction / norm.clamp_min(torch.finfo(torch.float32).tiny)
    return found


def _tolerance(x: Tensor | None) -> float:
    """Return a few roundings of the type, and no less than what kernels of float32 differ by."""
    return max(1e-4, 8 * torch.finfo(x.dtype).eps) if x is not None and x.is_floating_point() else 1e-4
