"""Block caching: layers whose output hardly changes from one step to the next are not computed again.

Wimbauer et al. 2024, "Cache Me if You Can: Accelerating Diffusion Models through Block Caching". For
each layer the change of its output between steps is measured (their eq. 3)::

    L1_rel(i, s) = || C_i(s) - C_i(s - 1) ||_1 / || C_i(s) ||_1

and a layer is computed again once the change added up since its last computation reaches a threshold
(section 3.3). Two things differ from the paper. What is kept is the layer's *residual*, output minus
input, where both have one shape, so that a change of the input still passes through. And the first
and last steps are always computed: the first sets the motion, the last the detail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn

from ..model.denoiser import Denoiser, Predict
from ..model.families import Cond
from .base import Change, NotApplicable
from .prepared import PreparedDenoiser

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

LAYERS = (ResnetBlock2D, TemporalConvLayer, Transformer2DModel, TransformerTemporalModel, AnimateDiffTransformer3D)
"""Kinds of layers whose outputs are kept."""

Schedule = Mapping[str, tuple[bool, ...]]
"""For each layer, by its path in the U-Net: at which steps it is computed."""


@dataclass(frozen=True)
class Changes:
    """Measured change of each layer's output.

    Attributes:
        steps: of the solver they were measured with.
        relative: for each layer, `L1_rel` of steps 1 to `steps - 1` against the step before, averaged over requests.
    """

    steps: int
    relative: Mapping[str, tuple[float, ...]]


def schedule_of(changes: Changes, threshold: float) -> Schedule:
    """When each layer is computed, such that the change left out never adds up to `threshold`.

    Raises:
        ValueError: the threshold is negative.
    """
    if threshold < 0:
        raise ValueError(f"threshold: {threshold} is below 0")
    schedule: dict[str, tuple[bool, ...]] = {}
    for name, relative in changes.relative.items():
        computed, left_out = [True], 0.0
        for step, change in enumerate(relative, start=1):
            left_out += change
            compute = left_out >= threshold or step == changes.steps - 1
            computed.append(compute)
            if compute:
                left_out = 0.0
        schedule[name] = tuple(computed)
    return schedule


def share_computed(schedule: Schedule) -> float:
    """Layers computed over layers asked for, 0 to 1."""
    every = [computed for steps in schedule.values() for computed in steps]
    return sum(every) / len(every)


class _Tapped:
    """Stands before the layers of a U-Net and sees each of their calls; knows the step of the request.

    Args:
        on_layer: `(name, step, compute) -> residual`, where `compute()` runs the layer and gives its
            residual (its output, where the shapes of input and output differ).
    """

    def __init__(self, unet: nn.Module, on_layer: Callable[[str, int, Callable[[], Tensor]], Tensor]) -> None:
        self.step = -1
        self.on_layer = on_layer
        self.layers = {name: module for name, module in unet.named_modules() if isinstance(module, LAYERS)}
        if not self.layers:
            raise NotApplicable(f"block cache: {type(unet).__name__} has no layers that it knows")
        # A layer inside another is a part of it.
        self.layers = {
            name: module
            for name, module in self.layers.items()
            if not any(name.startswith(f"{other}.") for other in self.layers)
        }
        for name, module in self.layers.items():
            module.forward = self._wrap(name, module.forward)

    def _wrap(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        shapes: dict[str, bool] = {}

        def forward(*args: Any, **kwargs: Any) -> Any:
            # diffusers' motion blocks give a ResNet its input by name.
            given = args[0] if args else kwargs.get("hidden_states", kwargs.get("input_tensor"))
            hidden_states = cast(Tensor, given)
            is_tuple = kwargs.get("return_dict") is False
            fresh: list[Tensor] = []

            def compute() -> Tensor:
                output = plain(*args, **kwargs)
                if is_tuple:
                    output = output[0]
                elif not isinstance(output, Tensor):
                    raise NotApplicable(f"block cache: {name} returns {type(output).__name__}, not a tensor")
                fresh.append(output)
                shapes["same"] = output.shape == hidden_states.shape
                return cast(Tensor, output - hidden_states) if shapes["same"] else output

            kept = self.on_layer(name, self.step, compute)
            reused = hidden_states + kept if shapes["same"] and not fresh else kept
            output = fresh[0] if fresh else reused  # as it is: input plus residual would be rounded once more
            return (output,) if is_tuple else output

        return forward

    def remove(self) -> None:
        for module in self.layers.values():
            del module.forward  # the class's own is found again


class _Stepping:
    """A denoiser that keeps count of the steps for the tap."""

    def __init__(self, inner: Denoiser, tap: _Tapped, on_start: Callable[[], None]) -> None:
        self.inner, self.tap, self.on_start = inner, tap, on_start

    def start(self, cond: Cond) -> Predict:
        predict = self.inner.start(cond)
        self.on_start()
        self.tap.step = -1

        def step(latents: Tensor, timestep: Tensor) -> Tensor:
            self.tap.step += 1
            return predict(latents, timestep)

        return step


def measure_changes(pipe: ImageAnimationPipeline, requests: Sequence[Callable[[], Any]], steps: int) -> Changes:
    """Measure how much each layer's output changes from step to step.

    Args:
        requests: each runs `pipe` once, with `steps` steps.

    Raises:
        ValueError: a request makes more steps.
    """
    before: dict[str, Tensor] = {}
    sums: dict[str, list[float]] = {}

    def see(name: str, step: int, compute: Callable[[], Tensor]) -> Tensor:
        if step >= steps:
            raise ValueError(f"steps: a request makes more than {steps}")
        residual = compute()
        sums.setdefault(name, [0.0] * (steps - 1))
        if step > 0:
            change = (residual - before[name]).abs().sum() / residual.abs().sum().clamp(min=1e-12)
            sums[name][step - 1] += float(change)
        before[name] = residual
        return residual

    inner = pipe.denoiser
    _refuse_programs(pipe)
    tap = _Tapped(pipe.network, see)
    pipe.denoiser = _Stepping(inner, tap, before.clear)
    try:
        for request in requests:
            request()
    finally:
        pipe.denoiser = inner
        tap.remove()
    return Changes(steps, {name: tuple(s / len(requests) for s in of_layer) for name, of_layer in sums.items()})


def cache_blocks(pipe: ImageAnimationPipeline, schedule: Schedule) -> Change:
    """Compute each layer only at the steps that the schedule names, and reuse its residual at the others.

    Requests with more steps than the schedule has compute every layer at the steps beyond it.

    Raises:
        NotApplicable: the schedule is of another U-Net, layers are skipped already, or the runtime runs
            a program of its own.
    """
    kept: dict[str, Tensor] = {}

    def reuse(name: str, step: int, compute: Callable[[], Tensor]) -> Tensor:
        computed = schedule[name]
        if step >= len(computed) or computed[step] or name not in kept:
            kept[name] = compute()
        return kept[name]

    inner = pipe.denoiser
    _refuse_programs(pipe)
    tap = _Tapped(pipe.network, reuse)
    if tap.layers.keys() != schedule.keys():
        tap.remove()
        odd = sorted(tap.layers.keys() ^ schedule.keys())
        raise NotApplicable(f"block cache: {odd[0]}: the schedule was made for another U-Net")
    pipe.denoiser = _Stepping(inner, tap, kept.clear)

    def undo() -> None:
        pipe.denoiser = inner
        tap.remove()
        kept.clear()

    return Change("block cache", f"{share_computed(schedule):.0%} of the layers' calls are computed", undo)


def _refuse_programs(pipe: ImageAnimationPipeline) -> None:
    denoiser = pipe.denoiser
    if isinstance(denoiser, _Stepping):
        raise NotApplicable("block cache: it is in place already")
    if isinstance(denoiser, PreparedDenoiser) and denoiser.run is not denoiser.module:
        raise NotApplicable("block cache: the U-Net runs as a traced or compiled program, which has no layers to skip")
    for name, module in pipe.network.named_modules():
        if isinstance(module, LAYERS) and module._compiled_call_impl is not None:  # noqa: SLF001  # nothing else says so
            raise NotApplicable(f"block cache: {name} runs as a compiled program, which does not know the step")
