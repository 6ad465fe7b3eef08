"""What runs the steps of a request: its constants are computed once, and then the step module or a program of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..model.families import Cond
from ..model.sampling import PlainDenoiser, Predict
from .base import Change, NotApplicable
from .context import ClipAttnProcessor, cross_attentions, fold_context
from .step_modules import Step, StepModule, step_of

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline


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
        kind = step_of(network)
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
