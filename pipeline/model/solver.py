"""A better solver for the same model: DPM-Solver++ on a time grid that is uniform in log-SNR.

Symbols are those of the paper (Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of
Diffusion Probabilistic Models"): a noisy sample is alpha_t * x_0 + sigma_t * noise, and
lambda = log(alpha_t / sigma_t) is half the log-SNR. It rises while noise is taken away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .flow_solver import LogSNRFlowScheduler, flow_solver, is_flow

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

LOG_SNR_START = -3.0
"""Of a small U-Net, 15 steps on 4 held-out clips are off the fine solution by 0.036 from -2, 0.018 from -2.5,
0.014 from -3 and from -3.5, 0.023 from -4 and 0.026 from -5 (DDIM: 0.022 with 30 steps). At 8 steps -3 is best.
On 2 other clips the gain is less: 0.015 from -3, DDIM 0.016 with 30 steps."""


class LogSNRDPMSolverScheduler(DPMSolverMultistepScheduler):  # type: ignore[misc]  # diffusers is untyped
    """Multistep DPM-Solver++ whose steps are uniform in lambda.

    The first step starts at t = T, where sampling starts from noise. The other timesteps are those of
    lambda_i = log_snr_start + i / steps * (lambda_max - log_snr_start), i = 1 .. steps - 1, with
    lambda_max that of the least noise level, and the last step ends in sigma = 0. Timesteps are
    fractions, so that no two are the same, whatever the schedule.

    diffusers' `use_lu_lambdas` is this grid without a start: with zero terminal SNR lambda begins at
    minus infinity (they put -8.3), and two steps in five go where there is little but noise.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type,
            rescale_betas_zero_snr: as the model was trained, see `DPMSolverMultistepScheduler`.
        solver_order: 1 (equals DDIM), 2, or 3.
        log_snr_start: lambda from which the grid is uniform. Where the schedule's own lambda at T is
            higher, that one counts.
        timesteps: a grid of its own, descending, in [0, T - 1], fractions allowed. It is used for as
            many steps as it has; other numbers of steps are uniform in lambda.
        noise_correction: take the sample that sampling starts from for pure noise, though the
            schedule's first level leaks a little of the clip (Kohler et al. 2024, "Imagine Flash",
            section 3.3). Of order 1 alone. At zero terminal SNR it changes nothing.

    Raises:
        ValueError: an argument is out of its range; the text begins with the argument's name.
    """

    # What `step` of the parent reads and what must not come from the config of another scheduler.
    _FIXED: ClassVar[dict[str, Any]] = {
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "euler_at_final": False,
        "thresholding": False,
        "variance_type": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "use_dynamic_shifting": False,
    }

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear",
        trained_betas: list[float] | None = None,
        solver_order: int = 2,
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon",
        rescale_betas_zero_snr: bool = False,
        log_snr_start: float = LOG_SNR_START,
        timesteps: list[float] | None = None,
        noise_correction: bool = False,
    ) -> None:
        if noise_correction and solver_order != 1:
            raise ValueError(f"noise_correction: is of solver_order 1, and this is {solver_order}")
        if solver_order not in {1, 2, 3}:
            raise ValueError(f"solver_order: {solver_order} is not 1, 2 or 3")
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type: {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")
        if trained_betas is None and beta_schedule not in BETA_SCHEDULES:
            raise ValueError(f"beta_schedule: {beta_schedule!r} is not one of {', '.join(BETA_SCHEDULES)}")
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            solver_order=solver_order,
            prediction_type=prediction_type,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        if rescale_betas_zero_snr:
            # The parent puts 2^-24 to keep sigma finite, which is off DDIM by 2e-4 in the first step.
            self.alphas_cumprod[-1] = 0.0
        alphas_bar = self.alphas_cumprod.double().numpy()
        # atan(sigma_t / alpha_t), `(T,)`. Finite at both ends, also at zero terminal SNR, and linear in t
        # for the cosine schedule: what lies between two timesteps is interpolated in it.
        self._angles = np.arctan2(np.sqrt(1 - alphas_bar), np.sqrt(alphas_bar))
        lambda_max = float(-np.log(np.tan(self._angles[0])))
        if not (math.isfinite(log_snr_start) and log_snr_start < lambda_max):
            raise ValueError(f"log_snr_start: {log_snr_start} is not below {lambda_max:.2f}, the least noise level")
        if timesteps is not None:
            self._check_grid(timesteps)

    def register_to_config(self, **kwargs: Any) -> None:
        super().register_to_config(**{**kwargs, **self._FIXED})

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Lay the grid.

        Args:
            num_inference_steps: on the grid of the config where it has as many steps, else uniform in lambda.
            device: of `timesteps`; noise levels stay on the CPU.
            timesteps: a grid for this run alone, instead of `num_inference_steps`.

        Raises:
            ValueError: the steps or the grid are out of range.
        """
        own = self.config["timesteps"]
        if timesteps is not None:
            if num_inference_steps is not None:
                raise ValueError("timesteps: give a grid or num_inference_steps, not both")
            self._check_grid(timesteps)
            grid = np.asarray(timesteps, dtype=np.float64)
        elif num_inference_steps is None or num_inference_steps < 1:
            raise ValueError(f"num_inference_steps: {num_inference_steps} is below 1")
        elif own is not None and len(own) == num_inference_steps:
            grid = np.asarray(own, dtype=np.float64)
        else:
            grid = self._uniform_grid(num_inference_steps)
        last = len(self._angles) - 1
        if self.config.prediction_type == "epsilon" and self._angles[-1] >= math.pi / 2 and grid[0] > last - 1:
            raise ValueError(
                "prediction_type: epsilon says nothing about the clip at zero terminal SNR, where the sample is noise"
            )

        sigmas = np.tan(np.interp(grid, np.arange(last + 1), self._angles))
        self.timesteps = torch.from_numpy(grid).to(device=device, dtype=torch.float32)
        self.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float32)
        self.num_inference_steps = len(grid)
        self.model_outputs = [None] * self.config.solver_order
        self.lower_order_nums = 0
        self._step_index = None
        self._begin_index = None

    def _uniform_grid(self, steps: int) -> np.ndarray:
        """Timesteps, `(steps,)`: T - 1, then uniform in lambda."""
        lambda_max, lambda_at_noise = -np.log(np.tan(self._angles[[0, -1]]))
        start = max(self.config.log_snr_start, lambda_at_noise)
        lambdas = start + np.arange(1, steps) / steps * (lambda_max - start)
        inner = np.interp(np.arctan(np.exp(-lambdas)), self._angles, np.arange(len(self._angles)))
        return np.concatenate([[len(self._angles) - 1.0], inner])

    def _check_grid(self, timesteps: Sequence[float]) -> None:
        grid, last = np.asarray(timesteps, dtype=np.float64), len(self._angles) - 1
        if grid.ndim != 1 or grid.size == 0:
            raise ValueError("timesteps: not a list of one number or more")
        if not (np.isfinite(grid).all() and grid.min() >= 0 and grid.max() <= last):
            raise ValueError(f"timesteps: outside 0 to {last}")
        if (np.diff(grid.astype(np.float32)) >= 0).any():
            raise ValueError("timesteps: not descending")

    def dpm_solver_first_order_update(
        self, model_output: Tensor, *args: Any, sample: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        if self.step_index == 0 and self.config.noise_correction:
            assert sample is not None
            alpha, sigma = self._sigma_to_alpha_sigma_t(self.sigmas[1])
            return alpha * model_output + sigma * sample
        return cast(Tensor, super().dpm_solver_first_order_update(model_output, *args, sample=sample, **kwargs))

    def _sigma_to_alpha_sigma_t(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t of sigma = sigma_t / alpha_t, for sigma from 0 to what counts as infinite."""
        return 1 / (1 + sigma**2).sqrt(), 1 / (1 + sigma**-2).sqrt()


_PLAIN_LEVELS: dict[str, Any] = {
    "timestep_type": "discrete",  # Stable Video Diffusion tells the model a quarter of the logarithm of sigma
    "sigma_max": None,
    "sigma_min": None,
    "snr_shift_scale": 1.0,  # CogVideoX
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
}
"""What a config says of noise levels that are not those of the betas, by the value that says nothing."""


def log_snr_solver(
    scheduler: SchedulerMixin,
    *,
    solver_order: int = 2,
    log_snr_start: float = LOG_SNR_START,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    noise_correction: bool = False,
) -> LogSNRDPMSolverScheduler | LogSNRFlowScheduler:
    """Return the solver for the model that another scheduler was made for.

    Args:
        scheduler: of diffusers, with betas (DDIM, DPM-Solver, Euler and their like) or of flow matching; its way of
            laying timesteps does not matter.
        solver_order, log_snr_start, timesteps, noise_correction: see `LogSNRDPMSolverScheduler`.
        sigmas: those of `timesteps`, of flow matching alone.

    Raises:
        ValueError: `scheduler` has other noise levels than its betas or its shift give, as those of Stable Video
            Diffusion and CogVideoX, or an argument is out of range.
    """
    if is_flow(scheduler):
        if noise_correction:
            raise ValueError("noise_correction: a schedule of flow matching begins with noise, and needs none")
        grid = {} if sigmas is None or timesteps is None else {"sigmas": list(sigmas), "timesteps": list(timesteps)}
        return flow_solver(scheduler, solver_order=solver_order, log_snr_start=log_snr_start, **grid)
    config = scheduler.config
    betas = getattr(scheduler, "betas", None)
    if betas is None or "prediction_type" not in config:
        raise ValueError(f"scheduler: {type(scheduler).__name__} has no betas and prediction type to take over")
    for name, plain in _PLAIN_LEVELS.items():
        if config.get(name, plain) not in {plain, None}:
            raise ValueError(
                f"scheduler: {type(scheduler).__name__} with {name} {config[name]} has noise levels that its betas do "
                "not give, and this solver knows no others"
            )
    known = ("num_train_timesteps", "beta_start", "beta_end", "trained_betas", "prediction_type")
    taken = {name: config[name] for name in known if config.get(name) is not None}
    taken["rescale_betas_zero_snr"] = config.get("rescale_betas_zero_snr", False)
    if config["beta_schedule"] in BETA_SCHEDULES:
        taken["beta_schedule"] = config["beta_schedule"]
    else:
        taken["trained_betas"] = betas.tolist()
    solver: LogSNRDPMSolverScheduler = LogSNRDPMSolverScheduler(
        **taken,
        solver_order=solver_order,
        log_snr_start=log_snr_start,
        timesteps=None if timesteps is None else [float(t) for t in timesteps],
        noise_correction=noise_correction,
    )
    levels = getattr(scheduler, "alphas_cumprod", None)
    # The last level of zero terminal SNR is kept off zero by some schedulers.
    if levels is not None and not torch.allclose(
        levels.float().cpu(), solver.alphas_cumprod.float(), rtol=1e-3, atol=1e-6
    ):
        raise ValueError(
            f"scheduler: the noise levels of {type(scheduler).__name__} are not those of its betas, and this solver "
            "knows no others"
        )
    return solver


def solver_problem(scheduler: SchedulerMixin) -> str | None:
    """Return why `log_snr_solver` does not fit a scheduler, or None."""
    try:
        log_snr_solver(scheduler)
    except ValueError as error:
        return str(error)
    return None
