from __future__ import annotations

import copy
import logging
import math
import subprocess
import sys
import warnings
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import ImageAnimationPipeline, LogSNRDPMSolverScheduler
from pipeline.bench.convergence import (
    ConvergencePoint,
    compared_samplers,
    convergence,
    latent_sampler,
    reference_latents,
)
from pipeline.model.solver import BETA_SCHEDULES, log_snr_solver

TEACHERS = {
    "num_train_timesteps": 1024,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}
PUBLISHED = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}


@pytest.fixture
def teachers_ddim():
    return DDIMScheduler(**TEACHERS, timestep_spacing="trailing", clip_sample=False)


@contextmanager
def nothing_is_warned_of():
    """Neither by `warnings` nor by diffusers' log."""

    class Listener(logging.Handler):
        def emit(self, record):
            # The pipeline's own arguments that are literals, on which diffusers has nothing to check.
            if "cannot get type annotation" not in record.getMessage():
                raise AssertionError(record.getMessage())

    listener = Listener(logging.WARNING)
    log = logging.getLogger("diffusers")
    log.addHandler(listener)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        log.removeHandler(listener)


def angles(scheduler):
    """atan(sigma_t / alpha_t) of each training timestep, in which both ends are finite."""
    alphas_bar = scheduler.alphas_cumprod.double().numpy()
    return np.arctan2(np.sqrt(1 - alphas_bar), np.sqrt(alphas_bar))


def run(scheduler, model, noise, steps):
    """Sampling loop around a model of (sample, alpha, sigma) that predicts the clean data."""
    scheduler.set_timesteps(steps)
    known, sample = angles(scheduler), noise
    for t in scheduler.timesteps:
        angle = np.interp(float(t), np.arange(len(known)), known)
        alpha, sigma = math.cos(angle), math.sin(angle)
        clean = model(sample, alpha, sigma)
        match scheduler.config.prediction_type:
            case "sample":
                predicted = clean
            case "epsilon":
                predicted = (sample - alpha * clean) / sigma
            case _:
                # v = alpha * noise - sigma * clean, with noise = (sample - alpha * clean) / sigma
                predicted = (alpha * sample - clean) / sigma
        sample = scheduler.step(predicted, t, sample).prev_sample
    return sample


class Gaussian:
    """Data of independent numbers of mean 0.7 and deviation 0.4, for which everything is known in closed form."""

    mean, deviation = 0.7, 0.4

    def __call__(self, sample, alpha, sigma):
        """Expected clean data of a noisy sample."""
        gain = alpha * self.deviation**2 / (alpha**2 * self.deviation**2 + sigma**2)
        return self.mean + gain * (sample - alpha * self.mean)

    def solution(self, noise, scheduler):
        """Where the probability flow ODE ends: distances from the mean, in deviations, stay as they are."""
        alpha, sigma = math.cos(angles(scheduler)[-1]), math.sin(angles(scheduler)[-1])
        deviation = math.sqrt(alpha**2 * self.deviation**2 + sigma**2)
        return self.mean + self.deviation * (noise - alpha * self.mean) / deviation


def error_on_gaussian(scheduler, steps):
    noise = torch.linspace(-2, 2, 9)
    found = run(scheduler, Gaussian(), noise, steps)
    return float((found - Gaussian().solution(noise, scheduler)).square().mean().sqrt())


# ---------------------------------------------------------------------- the grid


@given(
    steps=st.integers(1, 300),
    train=st.integers(50, 1200),
    schedule=st.sampled_from(BETA_SCHEDULES),
    zero_snr=st.booleans(),
    start=st.floats(-5, 0),
)
@settings(max_examples=60, deadline=None)
def test_the_grid_starts_at_the_end_of_noise_and_is_uniform_in_log_snr(steps, train, schedule, zero_snr, start):
    scheduler = LogSNRDPMSolverScheduler(
        num_train_timesteps=train,
        beta_schedule=schedule,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=zero_snr,
        log_snr_start=start,
    )
    scheduler.set_timesteps(steps)
    timesteps, sigmas = scheduler.timesteps.double().numpy(), scheduler.sigmas.double().numpy()
    assert timesteps[0] == train - 1
    assert len(timesteps) == steps
    assert (np.diff(timesteps) < 0).all()
    assert timesteps[-1] >= 0
    assert sigmas[-1] == 0
    least = -np.log(np.tan(angles(scheduler)[0]))
    first = max(start, -np.log(np.tan(angles(scheduler)[-1])))
    expected = np.linspace(first, least, steps + 1)[1:-1]
    assert np.allclose(-np.log(sigmas[1:-1]), expected, atol=1e-4)
    # Timesteps and noise levels are of the same places.
    of_timesteps = np.interp(timesteps, np.arange(train), angles(scheduler))
    assert np.allclose(np.arctan(sigmas[:-1]), of_timesteps, atol=1e-5)


def test_a_grid_of_its_own_is_used_for_as_many_steps_as_it_has():
    scheduler = LogSNRDPMSolverScheduler(**TEACHERS, timesteps=[1023, 700.5, 100])
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [1023, 700.5, 100]
    scheduler.set_timesteps(4)
    assert len(scheduler.timesteps) == 4
    assert 700.5 not in scheduler.timesteps
    scheduler.set_timesteps(timesteps=[900, 30])
    assert scheduler.timesteps.tolist() == [900, 30]
    assert scheduler.num_inference_steps == 2


# ---------------------------------------------------------------------- solutions


@pytest.mark.parametrize("steps", [1, 2, 8, 32])
@pytest.mark.parametrize(
    "config",
    [
        TEACHERS,
        {**TEACHERS, "prediction_type": "sample"},
        PUBLISHED,
        {**PUBLISHED, "prediction_type": "v_prediction"},
        {**PUBLISHED, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    ],
)
def test_order_one_on_the_grid_of_ddim_is_ddim(config, steps):
    # DDIM steps by whole timesteps, so that its grid is what it says only where steps divide T.
    ddim = DDIMScheduler(**{**config, "num_train_timesteps": 1024}, timestep_spacing="trailing", clip_sample=False)
    ddim.set_timesteps(steps)
    solver = log_snr_solver(ddim, solver_order=1, timesteps=ddim.timesteps.tolist())
    solver.set_timesteps(steps)
    mine = theirs = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(steps))
    for t, same in zip(ddim.timesteps, solver.timesteps, strict=True):
        # Any function of sample and timestep does as a model.
        theirs = ddim.step(torch.tanh(2 * theirs - t / 500), t, theirs).prev_sample
        mine = solver.step(torch.tanh(2 * mine - same / 500), same, mine).prev_sample
    assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize(("order", "least_slope", "most_slope"), [(1, 0.85, 1.15), (2, 1.8, 2.6)])
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_errors_fall_with_the_order_of_the_solver(order, least_slope, most_slope, prediction_type):
    config = {**TEACHERS, "prediction_type": prediction_type}
    scheduler = LogSNRDPMSolverScheduler(**config, solver_order=order, log_snr_start=-5)
    errors = [error_on_gaussian(scheduler, steps) for steps in (20, 40, 80)]
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(least_slope <= slope <= most_slope for slope in slopes), (errors, slopes)


@pytest.mark.parametrize("config", [TEACHERS, PUBLISHED, {**TEACHERS, "rescale_betas_zero_snr": False}])
@pytest.mark.parametrize("steps", [8, 15, 30])
def test_higher_orders_err_less(config, steps):
    errors = [error_on_gaussian(LogSNRDPMSolverScheduler(**config, solver_order=order), steps) for order in (1, 2, 3)]
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[0]


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_zero_terminal_snr_gives_finite_numbers_for_any_number_of_steps(schedule, order):
    scheduler = LogSNRDPMSolverScheduler(**{**TEACHERS, "beta_schedule": schedule}, solver_order=order)
    for steps in (1, 2, 3, 4, 7, 100):
        assert error_on_gaussian(scheduler, steps) < 1.4 * Gaussian.deviation


def test_noise_can_be_added_at_any_step_of_the_grid(teachers_ddim):
    solver = log_snr_solver(teachers_ddim)
    solver.set_timesteps(6)
    clean, noise = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    noisy = solver.add_noise(clean, noise, solver.timesteps)
    assert torch.allclose(noisy[0], noise[0])  # nothing but noise is left at T
    angle = float(np.interp(solver.timesteps[3].item(), np.arange(1024), angles(solver)))
    assert torch.allclose(noisy[3], math.cos(angle) * clean[3] + math.sin(angle) * noise[3], atol=1e-5)


# ---------------------------------------------------------------------- a citizen of diffusers


def test_it_saves_and_loads_as_other_schedulers_do(tmp_path, teachers_ddim):
    solver = log_snr_solver(teachers_ddim, solver_order=3, log_snr_start=-2.5, timesteps=[1023, 500.25, 20])
    with nothing_is_warned_of():
        solver.save_pretrained(tmp_path)
        loaded = LogSNRDPMSolverScheduler.from_pretrained(tmp_path)
        copied = LogSNRDPMSolverScheduler.from_config(loaded.config)
    for other in (loaded, copied):
        names = (*TEACHERS, "solver_order", "log_snr_start", "timesteps")
        assert {name: other.config[name] for name in names} == {name: solver.config[name] for name in names}
        other.set_timesteps(3)
        assert other.timesteps.tolist() == [1023, 500.25, 20]


def test_it_saves_and_loads_within_a_pipeline(tmp_path, pipe, picture):
    pipe.scheduler = log_snr_solver(pipe.scheduler, timesteps=[990, 400, 50])
    with nothing_is_warned_of():
        pipe.save_pretrained(tmp_path)
        loaded = ImageAnimationPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config["scheduler"] == ("pipeline.model.solver", "LogSNRDPMSolverScheduler")
    clips = [
        latent_sampler(p, [picture()], ["a red ball"], num_frames=4, height=32, width=32)(p.scheduler, 3)
        for p in (pipe, loaded)
    ]
    assert loaded.scheduler.timesteps.tolist() == [990, 400, 50]
    assert clips[0].isfinite().all()
    assert torch.allclose(*clips, atol=1e-5)  # loaded weights lie elsewhere in memory, and sums may round differently


@pytest.mark.parametrize(
    "other",
    [
        DDIMScheduler(**PUBLISHED),
        EulerDiscreteScheduler(**PUBLISHED, use_karras_sigmas=True),
        DPMSolverMultistepScheduler(**PUBLISHED, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True),
    ],
)
def test_it_takes_over_what_the_model_was_trained_with_and_no_more(other):
    with nothing_is_warned_of():
        solvers = [log_snr_solver(other), LogSNRDPMSolverScheduler.from_config(other.config)]
    for solver in solvers:
        assert {name: solver.config[name] for name in PUBLISHED} == PUBLISHED
        assert torch.allclose(solver.betas, other.betas)
        assert solver.config.algorithm_type == "dpmsolver++"
        assert error_on_gaussian(solver, 30) < 0.01


def test_it_takes_over_betas_of_a_schedule_it_does_not_know():
    other = DDPMScheduler(beta_schedule="sigmoid", prediction_type="v_prediction")
    solver = log_snr_solver(other)
    assert torch.equal(solver.betas, other.betas)


def test_importing_the_package_does_not_import_diffusers():
    program = "import sys, pipeline; print(pipeline.__all__, 'diffusers' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "LogSNRDPMSolverScheduler" in printed
    assert printed.endswith("False\n")


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver_order": 4}, "solver_order: 4 is not 1, 2 or 3"),
        ({"prediction_type": "flow_prediction"}, "prediction_type: 'flow_prediction' is not one of epsilon"),
        ({"beta_schedule": "laplace"}, "beta_schedule: 'laplace' is not one of linear"),
        ({"log_snr_start": 9.0}, r"log_snr_start: 9.0 is not below 5\.\d+"),
        ({"log_snr_start": -math.inf}, "log_snr_start: -inf is not below"),
        ({"timesteps": []}, "timesteps: not a list of one number or more"),
        ({"timesteps": [1024, 5]}, "timesteps: outside 0 to 1023"),
        ({"timesteps": [5, -0.5]}, "timesteps: outside 0 to 1023"),
        ({"timesteps": [math.nan]}, "timesteps: outside 0 to 1023"),
        ({"timesteps": [5, 5]}, "timesteps: not descending"),
        ({"timesteps": [5, 9]}, "timesteps: not descending"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LogSNRDPMSolverScheduler(**{**TEACHERS, **arguments})


def test_steps_out_of_range_are_named():
    scheduler = LogSNRDPMSolverScheduler(**TEACHERS)
    for steps in (0, -3, None):
        with pytest.raises(ValueError, match=f"num_inference_steps: {steps} is below 1"):
            scheduler.set_timesteps(steps)
    with pytest.raises(ValueError, match="timesteps: give a grid or num_inference_steps, not both"):
        scheduler.set_timesteps(2, timesteps=[5, 4])
    with pytest.raises(ValueError, match="timesteps: not descending"):
        scheduler.set_timesteps(timesteps=[4, 5])


def test_predicted_noise_at_zero_terminal_snr_is_refused():
    scheduler = LogSNRDPMSolverScheduler(**{**TEACHERS, "prediction_type": "epsilon"})
    with pytest.raises(ValueError, match="prediction_type: epsilon says nothing"):
        scheduler.set_timesteps(8)


@pytest.mark.parametrize(
    ("scheduler", "name"),
    [
        (EulerDiscreteScheduler(sigma_max=700.0, timestep_type="continuous"), "timestep_type"),  # as SVD's
        (EulerDiscreteScheduler(sigma_max=700.0), "sigma_max"),
        (CogVideoXDDIMScheduler(snr_shift_scale=3.0), "snr_shift_scale"),
        (CogVideoXDPMScheduler(snr_shift_scale=1.0), None),
        (UniPCMultistepScheduler(use_flow_sigmas=True), "use_flow_sigmas"),
    ],
)
def test_a_scheduler_of_noise_levels_that_are_not_of_its_betas_is_refused(scheduler, name):
    if name is None:  # without its shift it is like others
        assert log_snr_solver(scheduler).config.prediction_type == scheduler.config.prediction_type
        return
    with pytest.raises(ValueError, match=f"^scheduler: .*{name}"):
        log_snr_solver(scheduler)


def test_noise_levels_that_a_scheduler_has_changed_without_saying_so_are_refused(teachers_ddim):
    changed = copy.deepcopy(teachers_ddim)
    changed.alphas_cumprod = changed.alphas_cumprod**2
    with pytest.raises(ValueError, match="are not those of its betas"):
        log_snr_solver(changed)


def test_a_schedule_of_flow_matching_that_no_shift_gives_is_named():
    with pytest.raises(ValueError, match="scheduler: FlowMatchEulerDiscreteScheduler with use_karras_sigmas"):
        log_snr_solver(FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True))


# ---------------------------------------------------------------------- the study


def test_the_study_finds_the_solver_better_than_ddim_where_the_solution_is_known(teachers_ddim):
    noise = torch.linspace(-2, 2, 9)

    def sample(scheduler, steps):
        return run(scheduler, Gaussian(), noise, steps)

    reference = reference_latents(sample, teachers_ddim)
    assert torch.allclose(reference, Gaussian().solution(noise, teachers_ddim), atol=1e-3)
    samplers = compared_samplers(teachers_ddim)
    points = convergence(sample, samplers, [15, 30], reference)
    assert [(point.sampler, point.steps) for point in points] == [(name, n) for name in samplers for n in (15, 30)]
    by_name = {(point.sampler, point.steps): point.rmse for point in points}
    assert by_name["DPM-Solver++, uniform log-SNR", 15] < by_name["DDIM", 30]


def test_the_study_leaves_the_pipeline_as_it_was(i2vgen, picture):
    own = i2vgen.scheduler
    sample = latent_sampler(i2vgen, [picture()], ["a red ball"], num_frames=4, height=32, width=32)
    reference = sample(own, 2)
    assert convergence(sample, {"its own": own}, [2], reference) == [ConvergencePoint("its own", 2, 0.0)]
    assert i2vgen.scheduler is own
