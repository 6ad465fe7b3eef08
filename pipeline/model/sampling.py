"""The denoising loop, what it calls at each step, and which schedulers it takes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from ..errors import ModelError, first_line
from ..spans import part
from .families import Cond, Generators, Parts, stack
from .guidance import AnyGuidance

if TYPE_CHECKING:
    from .animation import ImageAnimationPipeline

Predict = Callable[[Tensor, Tensor], Tensor]
"""`(latents, timestep) -> prediction`: latents `(batch, channels, frames, height, width)`, with all guidance branches
along the batch where the family stacks them, a scalar timestep, and a prediction of the latents' shape."""


class Denoiser(Protocol):
    """Turns the conditions of one request into its prediction function; optimisations bring their own."""

    def start(self, cond: Cond) -> Predict:
        """Begin a request. All that does not change from step to step is computed here, once."""
        ...


class PlainDenoiser:
    """The network as diffusers has it: everything is computed anew at each step."""

    def __init__(self, pipe: ImageAnimationPipeline) -> None:
        self._pipe = pipe

    def start(self, cond: Cond) -> Predict:
        pipe = self._pipe
        family, parts = pipe.family, pipe.parts

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            network = getattr(pipe, family.network_at(parts, timestep))
            return family.predict(network, latents, timestep, cond)

        return predict


def denoise(
    pipe: ImageAnimationPipeline,
    parts: Parts,
    noise: Tensor,
    conds: Mapping[str, Cond],
    stages: Sequence[AnyGuidance],
    solver: Solver,
    after_step: Callable[[int, Tensor, Tensor], Tensor],
) -> Tensor:
    """Return latents of clips, sampled from noise on the grid that the scheduler was set to.

    Args:
        conds: what the network is given, by guidance branch.
        stages: guidance of each of the family's networks.
        after_step: called with step, timestep and latents; sampling goes on with what it returns.
    """
    family, scheduler, first = pipe.family, pipe.scheduler, next(iter(conds.values()))
    # Euler's scheduler of flow matching scales nothing, and does not say so.
    scaled = getattr(scheduler, "scale_model_input", lambda latents, _: latents)
    predict = _start(pipe, {name: family.with_grid(parts, c, scheduler.timesteps) for name, c in conds.items()})
    z = family.initial(scheduler, noise, first)
    with pipe.progress_bar(total=len(scheduler.timesteps)) as progress:
        for i, t in enumerate(scheduler.timesteps):
            with part("step", step=i + 1):
                guidance = stages[family.networks.index(family.network_at(parts, t))]
                # Between the passes all is float32: in half precision the rounding of each step would add up.
                predicted = guidance.combine(predict(scaled(z, t).to(parts.dtype), t, guidance).float())
                z = family.hold(solver(predicted, t, z), first)
            z = after_step(i, t, z)
            progress.update()
    return z


def _start(pipe: ImageAnimationPipeline, conds: Mapping[str, Cond]) -> Callable[[Tensor, Tensor, AnyGuidance], Tensor]:
    """Return what predicts all branches of a guidance, one after the other along the batch, for latents."""
    if pipe.family.stacks_branches:
        stacked = pipe.denoiser.start(stack(list(conds.values())))
        return lambda z, t, guidance: stacked(torch.cat([z] * guidance.passes), t)
    each = {name: pipe.denoiser.start(cond) for name, cond in conds.items()}
    return lambda z, t, guidance: torch.cat([each[name](z, t) for name in guidance.branches])


_KEPT_BETWEEN_STEPS = frozenset({"old_pred_original_sample", "timestep_back"})
"""What the step of CogVideoX's DPM-Solver wants of the step before; other solvers keep it themselves."""


class Solver:
    """Takes the scheduler's steps for one request, as the published pipelines do.

    Args:
        by_frame: whether the scheduler is given frames as if they were clips (`Family.steps_by_frame`).
        eta, generator: of schedulers that draw noise at each step.
    """

    def __init__(self, scheduler: Any, generator: Generators, *, by_frame: bool, eta: float) -> None:
        self._scheduler, self._by_frame, self._each = scheduler, by_frame, isinstance(generator, list)
        accepted = inspect.signature(scheduler.step).parameters
        every = {"eta": eta, "generator": generator, **dict.fromkeys(_KEPT_BETWEEN_STEPS)}
        self._given = {name: value for name, value in every.items() if name in accepted}

    def __call__(self, predicted: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Return the latents after one step, `(batch, channels, frames, h, w)`."""
        if not self._by_frame:
            return self._step(predicted, t, z)
        # Noise that a scheduler draws is then laid out frame by frame.
        by_frame = [one.transpose(1, 2) for one in (predicted, z)]  # (batch, frames, channels, h, w)
        if self._each and "generator" in self._given:
            return self._step(by_frame[0], t, by_frame[1]).transpose(1, 2)
        flat = [one.flatten(0, 1) for one in by_frame]  # (batch * frames, channels, h, w)
        stepped = self._step(flat[0], t, flat[1])
        return cast(Tensor, stepped.unflatten(0, (z.shape[0], -1))).transpose(1, 2)

    def _step(self, predicted: Tensor, t: Tensor, z: Tensor) -> Tensor:
        if not self._given.keys() >= _KEPT_BETWEEN_STEPS:
            return cast(Tensor, self._scheduler.step(predicted, t, z, **self._given).prev_sample)
        stepped, clip = self._scheduler.step(predicted, timestep=t, sample=z, **self._given, return_dict=False)
        self._given.update(old_pred_original_sample=clip, timestep_back=t)
        return cast(Tensor, stepped)


_PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


def check_scheduler(scheduler: Any, *, flow: bool) -> None:
    """Refuse a scheduler that does not fit what the network predicts.

    Args:
        flow: whether the network predicts a flow, and not what is left of noise levels.

    Raises:
        ValueError: it is of the other kind, or its step wants more than prediction, timestep and sample.
    """
    name = type(scheduler).__name__
    # Euler's and Heun's schedulers of flow matching have no use for scaling.
    needed = ("set_timesteps", "step") if flow else ("set_timesteps", "step", "scale_model_input", "init_noise_sigma")
    kind = scheduler.config.get("prediction_type") or "epsilon"
    flows = "FlowMatch" in name or scheduler.config.get("use_flow_sigmas") or kind not in _PREDICTION_TYPES
    if bool(flows) != flow or not all(hasattr(scheduler, one) for one in needed):
        reason = (
            "(such as noise levels); this family takes schedulers of flow matching"
            if flow
            else "(such as flow matching); these models take schedulers of noise levels that predict one of "
            + ", ".join(_PREDICTION_TYPES)
        )
        raise ValueError(f"scheduler: {name} is of another kind {reason}")
    wanted = [
        parameter.name
        for parameter in inspect.signature(scheduler.step).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.name not in _KEPT_BETWEEN_STEPS
    ]
    if len(wanted) > 3:
        raise ValueError(f"scheduler: {name} wants {wanted[3]} at each step, which this pipeline does not have")


def evaluations(scheduler: Any, steps: int) -> int:
    """Return how many times each guidance branch is predicted in `steps` steps of a scheduler.

    As many as steps for most; solvers that look at two places in a step (Heun, KDPM2), or at several to begin with
    (PNDM), take more.

    Raises:
        ModelError: the scheduler cannot be set to so many steps.
    """
    scheduler = copy.deepcopy(scheduler)  # what it was set to stays
    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    try:
        scheduler.set_timesteps(steps, **shift)
    except Exception as error:  # of diffusers, whose kinds are many
        raise ModelError(
            f"scheduler: {type(scheduler).__name__} cannot be set to {steps} steps: {first_line(error)}"
        ) from error
    return len(scheduler.timesteps)
