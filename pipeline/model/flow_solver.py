"""DPM-Solver++ on a grid that is uniform in log-SNR, for models of flow matching.

There a noisy sample is z = (1 - sigma) * x + sigma * e, with clip x and noise e, and the network predicts the flow
e - x. Half the log-SNR is lambda = log((1 - sigma) / sigma). A checkpoint's shift, sigma' = shift * sigma / (1 +
(shift - 1) * sigma), moves lambda by -log(shift), so a grid that is uniform in lambda stays one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

LOG_SNR_START = -3.0
"""Lambda of the second step before the shift; the first begins at the noise."""

_OTHER_GRIDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas")
_TAKEN = (
    "num_train_timesteps",
    "use_dynamic_shifting",
    "shift_terminal",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
)


class LogSNRFlowScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Multistep DPM-Solver++ of the clip (Lu et al. 2022, algorithm 2), whose steps are uniform in lambda.

    With h the length of a step in lambda and r the length of the one before over h::

        D = x + (x - x_before) / (2 r),    z' = (sigma' / sigma) * z - (1 - sigma') * (exp(-h) - 1) * D

    The first step and the last, which ends in sigma 0, take D = x, as all do with `solver_order` 1 (Euler's method).

    Args:
        num_train_timesteps: what the network is told at sigma 1.
        shift: of the checkpoint's noise levels; with `use_dynamic_shifting` a call says it as `mu`, its logarithm.
        shift_terminal: sigma at which the last step begins at the least, as the checkpoint was trained; None: any.
        base_shift, max_shift, base_image_seq_len, max_image_seq_len: how the caller finds `mu`.
        solver_order: 1 or 2.
        log_snr_start: lambda that the second step begins at or after, before the shift.
        sigmas, timesteps: a grid of its own, falling, for as many steps as it has; other numbers of steps are uniform.

    Raises:
        ValueError: an argument is out of its range; the text begins with its name.
    """

    order = 1
    init_noise_sigma = 1.0
    _compatibles: list[str] = []  # noqa: RUF012  # diffusers declares it so

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        shift_terminal: float | None = None,
        base_shift: float | None = None,
        max_shift: float | None = None,
        base_image_seq_len: int | None = None,
        max_image_seq_len: int | None = None,
        solver_order: int = 2,
        log_snr_start: float = LOG_SNR_START,
        sigmas: list[float] | None = None,
        timesteps: list[float] | None = None,
        prediction_type: str = "flow_prediction",
    ) -> None:
        if solver_order not in {1, 2}:
            raise ValueError(f"solver_order: {solver_order} is not 1 or 2")
        if not shift > 0:
            raise ValueError(f"shift: {shift} is not above 0")
        if not (math.isfinite(log_snr_start) and log_snr_start < math.log(num_train_timesteps - 1)):
            raise ValueError(f"log_snr_start: {log_snr_start} is not below the least noise level")
        if (sigmas is None) != (timesteps is None) or len(sigmas or ()) != len(timesteps or ()):
            raise ValueError("timesteps: a grid has as many of them as sigmas")
        if sigmas is not None:
            _check_grid(sigmas)
        self.set_timesteps(1, mu=0.0)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Lay the grid.

        Args:
            sigmas: in place of `num_inference_steps`, as many numbers as there are steps: callers of schedulers of
                flow matching give them, and this one has a grid of its own.
            mu: logarithm of the shift, where it depends on the number of tokens.

        Raises:
            ValueError: there is not a step.
        """
        config, steps = self.config, num_inference_steps if sigmas is None else len(sigmas)
        if steps is None or steps < 1:
            raise ValueError(f"num_inference_steps: {steps} is below 1")
        if config.sigmas is not None and len(config.sigmas) == steps:
            grid, told = np.asarray(config.sigmas, dtype=np.float64), np.asarray(config.timesteps, dtype=np.float64)
        else:
            shift = config.shift if mu is None or not config.use_dynamic_shifting else math.exp(mu)
            grid = self._uniform_grid(steps, math.log(shift))
            told = grid * config.num_train_timesteps
        self.num_inference_steps = steps
        self.sigmas = torch.tensor([*grid, 0.0], dtype=torch.float32)
        self.timesteps = torch.from_numpy(told).to(device=device, dtype=torch.float32)
        self._before: Tensor | None = None
        self._step_index: int | None = None

    def _uniform_grid(self, steps: int, log_shift: float) -> np.ndarray:
        """Return sigmas `(steps,)`: that of the most noise, then uniform in lambda."""
        config = self.config
        most = math.log(config.num_train_timesteps - 1)
        last = most - log_shift
        if config.shift_terminal:
            last = min(last, math.log((1 - config.shift_terminal) / config.shift_terminal))
        start = min(config.log_snr_start - log_shift, last)
        lambdas = start + np.arange(1, steps) / steps * (last - start)
        sigmas: np.ndarray = 1 / (1 + np.exp(np.concatenate([[-most - log_shift], lambdas])))
        return sigmas

    def scale_model_input(self, sample: Tensor, timestep: object = None) -> Tensor:
        """Return the sample as it is: the network takes it so."""
        return sample

    def step(
        self, model_output: Tensor, timestep: object, sample: Tensor, return_dict: bool = True, **_unused: Any
    ) -> SchedulerOutput | tuple[Tensor]:
        """Take the step that `set_timesteps` has next.

        Args:
            model_output: the flow, of the shape of `sample`.
            timestep: not looked at.
        """
        k = self._step_index = 0 if self._step_index is None else self._step_index + 1
        sigma, after = (float(level) for level in self.sigmas[k : k + 2])
        z = sample.float()
        x = z - sigma * model_output.float()
        if after == 0:
            z = x
        else:
            h = _log_snr(after) - _log_snr(sigma)
            ahead = x
            if self._before is not None and self.config.solver_order == 2:
                r = (_log_snr(sigma) - _log_snr(float(self.sigmas[k - 1]))) / h
                ahead = x + (x - self._before) / (2 * r)
            z = after / sigma * z - (1 - after) * math.expm1(-h) * ahead
        self._before = x
        z = z.to(sample.dtype)
        return SchedulerOutput(prev_sample=z) if return_dict else (z,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return clips with the noise of their timesteps `(batch,)`."""
        sigmas: Tensor = timesteps.to(original_samples) / self.config.num_train_timesteps
        sigmas = sigmas.view(-1, *[1] * (original_samples.dim() - 1))
        return (1 - sigmas) * original_samples + sigmas * noise


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Return whether a scheduler is one of flow matching."""
    config = scheduler.config
    return config.get("prediction_type") == "flow_prediction" or type(scheduler).__name__.startswith("FlowMatch")


def flow_solver(scheduler: SchedulerMixin, **own: Any) -> LogSNRFlowScheduler:
    """Return the solver for the model that another scheduler of flow matching was made for.

    Args:
        own: `solver_order`, `log_snr_start`, `sigmas` and `timesteps` of `LogSNRFlowScheduler`.

    Raises:
        ValueError: the scheduler has noise levels that a shift does not give, or an argument is out of range.
    """
    config = scheduler.config
    for name in _OTHER_GRIDS:
        if config.get(name):
            kind = type(scheduler).__name__
            raise ValueError(f"scheduler: {kind} with {name} has noise levels that its shift does not give")
    if config.get("time_shift_type", "exponential") != "exponential":
        raise ValueError(f"scheduler: time_shift_type {config['time_shift_type']} is not exponential")
    given = {name: config[name] for name in _TAKEN if config.get(name) is not None}
    given["shift"] = float(config.get("flow_shift", config.get("shift", 1.0)))
    solver: LogSNRFlowScheduler = LogSNRFlowScheduler(**given, **own)
    return solver


def _log_snr(sigma: float) -> float:
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


def _check_grid(sigmas: Sequence[float]) -> None:
    grid = np.asarray(sigmas, dtype=np.float64)
    if grid.ndim != 1 or grid.size == 0 or not (np.isfinite(grid).all() and grid.min() > 0 and grid.max() <= 1):
        raise ValueError("sigmas: not a list of numbers above 0, and 1 at most")
    if (np.diff(grid) >= 0).any():
        raise ValueError("sigmas: not falling")
