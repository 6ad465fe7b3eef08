"""Block caching: where the first block of a transformer hardly changes anything, the rest is not computed again.

diffusers' `FirstBlockCache`, after TeaCache (Liu et al. 2024). It compares what the first block adds with what it added
at the step computed last, and below a threshold reuses what all other blocks added there.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from diffusers import CacheMixin, FirstBlockCacheConfig
from torch import Tensor

from ..errors import first_line
from ..model.families import Cond
from ..model.sampling import Denoiser, Predict
from .base import Change, NotApplicable
from .prepared import runs_program

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline


class _Cached:
    """A denoiser that keeps what is reused apart for each guidance branch, and forgets it after the request."""

    def __init__(self, inner: Denoiser, networks: tuple[CacheMixin, ...]) -> None:
        self.inner, self.networks, self.numbers = inner, networks, count()

    def start(self, cond: Cond) -> Predict:
        predict, name = self.inner.start(cond), f"branch {next(self.numbers)}"
        for network in self.networks:
            network._reset_stateful_cache()  # noqa: SLF001  # diffusers' own pipelines call it too

        def cached(latents: Tensor, timestep: Tensor) -> Tensor:
            with ExitStack() as contexts:
                for network in self.networks:
                    contexts.enter_context(network.cache_context(name))
                return predict(latents, timestep)

        return cached


def cache_blocks(pipe: ImageAnimationPipeline, threshold: float) -> Change:
    """Reuse what the later blocks added while the first one's contribution changes by less than `threshold`."""
    denoiser, networks = pipe.denoiser, pipe.networks
    if isinstance(denoiser, _Cached):
        raise NotApplicable("block cache: it is in place already")
    if runs_program(pipe):
        raise NotApplicable("block cache: a traced or compiled program runs the network, and has no blocks to skip")
    for network in networks:
        if not isinstance(network, CacheMixin):
            raise NotApplicable(f"block cache: {type(network).__name__} is no transformer that diffusers caches")
    try:
        for network in networks:
            cast(Any, network).enable_cache(FirstBlockCacheConfig(threshold=threshold))
    except (IndexError, ValueError) as error:  # a block of a class that it does not know
        _disable(networks)
        reason = "has a single block" if isinstance(error, IndexError) else first_line(error)
        raise NotApplicable(f"block cache: {type(networks[0]).__name__}: {reason}") from error
    pipe.denoiser = _Cached(denoiser, networks)

    def undo() -> None:
        pipe.denoiser = denoiser
        _disable(networks)

    return Change("block cache", f"blocks after the first are reused below a change of {threshold:g}", undo)


def _disable(networks: tuple[CacheMixin, ...]) -> None:
    for network in networks:
        if network.is_cache_enabled:
            network.disable_cache()
