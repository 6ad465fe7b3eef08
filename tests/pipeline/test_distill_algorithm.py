"""The mathematics of distillation, on models that are formulas."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bench.presets import zero_snr_schedule
from pipeline.distill.algorithm import (
    Grid,
    NotSplittable,
    clean_of,
    distillation_loss,
    forward_states,
    landing_target,
    move,
    shifted_reconstruction_loss,
    student_states,
    student_step,
    teacher_landing,
    velocity_of,
)
from pipeline.model.solver import log_snr_solver

SHAPE = (3, 4, 2, 2, 2)
angles = st.floats(0.0, math.pi / 2 - 0.05)


def leaky_scheduler(prediction_type="v_prediction"):
    """The schedule of Stable Diffusion, whose first level leaks a little of the clip."""
    return DDIMScheduler(
        num_train_timesteps=1024,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def flow_scheduler():
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def noise_like(shape=SHAPE, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gaussian_model(grid, spread=0.5):
    """The exact prediction for clips that are noise of standard deviation `spread` around 0.3."""

    def predict(z, timesteps, _rows):
        at = (grid.timesteps[None] == timesteps[:, None]).int().argmax(dim=1)
        a, s = grid.levels(at, z)
        x = 0.3 + (z - a * 0.3) * a * spread**2 / (a**2 * spread**2 + s**2)
        match grid.prediction_type:
            case "sample":
                return x
            case "epsilon":
                return (z - a * x) / s
            case "v_prediction":
                return velocity_of(z, x, a, s)
            case "flow_prediction":
                return (z - x) / s

    return predict


@given(start=angles.filter(lambda angle: angle > 0.1), end=angles, seed=st.integers(0, 1000))
def test_the_target_is_what_makes_one_step_land_where_the_teacher_landed(start, end, seed):
    if end >= start - 0.05:
        return
    levels = [tuple(torch.tensor(f(angle)) for f in (math.cos, math.sin)) for angle in (start, end)]
    z, landed = noise_like(seed=seed), noise_like(seed=seed + 1)
    x = landing_target(z, landed, *levels)
    assert torch.allclose(move(z, x, *levels), landed, atol=1e-3)


def test_the_grid_is_every_fourth_step_of_the_teacher():
    grid = Grid.of(zero_snr_schedule(), 32, 8)
    assert grid.starts.tolist() == list(range(0, 33, 4))
    assert grid.student_timesteps == [1023, 895, 767, 639, 511, 383, 255, 127]
    assert (float(grid.alphas[0]), float(grid.sigmas[-1])) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("scheduler", "steps", "words"),
    [
        (zero_snr_schedule(), (32, 33), "student_steps: 33 is not within 1 and the teacher's 32"),
        (zero_snr_schedule(), (32, 0), "student_steps: 0 is not within 1"),
        (FlowMatchEulerDiscreteScheduler(), (32, 8, True), "noise_correction: a schedule of flow matching"),
        (
            DDIMScheduler(prediction_type="epsilon", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
            (20, 5),
            "zero terminal SNR",
        ),
    ],
)
def test_a_schedule_that_cannot_be_split_says_why(scheduler, steps, words):
    with pytest.raises(NotSplittable, match=words):
        Grid.of(scheduler, *steps)


def test_schedulers_with_steps_between_the_timesteps_are_taken_at_the_nearest():
    grid = Grid.of(EulerDiscreteScheduler(timestep_spacing="trailing"), 20, 5)
    assert grid.student_steps == 5


@pytest.mark.parametrize(
    ("teacher_steps", "student_steps", "boundary", "starts"),
    [
        (50, 8, None, [0, 6, 12, 19, 25, 31, 38, 44, 50]),
        (40, 4, None, [0, 10, 20, 30, 40]),
        (40, 4, 900, [0, 11, 20, 30, 40]),
        (20, 4, 500, [0, 5, 10, 16, 20]),
        (20, 3, 700, [0, 7, 12, 20]),
    ],
)
def test_steps_that_do_not_divide_are_as_equal_as_can_be_and_begin_where_another_network_does(
    teacher_steps, student_steps, boundary, starts
):
    grid = Grid.of(flow_scheduler(), teacher_steps, student_steps, boundary=boundary)
    assert grid.starts.tolist() == starts
    if boundary is not None:
        first = int((grid.timesteps >= boundary).sum())
        assert first in starts


def test_two_networks_take_two_steps():
    with pytest.raises(NotSplittable, match="student_steps: 1 is below 2; each of the teacher's two networks"):
        Grid.of(flow_scheduler(), 40, 1, boundary=900)


@pytest.mark.parametrize("steps", [32, 29])
@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample", "flow_prediction"])
def test_a_student_that_hits_the_target_lands_with_the_teacher(kind, steps):
    grid = Grid.of(flow_scheduler() if kind == "flow_prediction" else leaky_scheduler(kind), steps, 8)
    teacher, z = gaussian_model(grid), noise_like()
    chosen = torch.tensor([0, 3, 7])
    begins, ends = grid.starts[chosen], grid.starts[chosen + 1]
    landed = teacher_landing(grid, teacher, z, begins, ends)
    start, end = grid.levels(begins, z), grid.levels(ends, z)
    x = landing_target(z, landed, start, end)

    def perfect(z, _timesteps, _rows):
        a, s = start
        every = {"sample": x, "epsilon": (z - a * x) / s, "v_prediction": velocity_of(z, x, a, s)}
        return {**every, "flow_prediction": (z - x) / s}[kind]

    assert torch.allclose(student_step(grid, perfect, z, chosen), landed, atol=1e-4)
    assert float(distillation_loss(grid, perfect, teacher, z, chosen)) < 1e-8


@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_the_loss_does_not_depend_on_what_the_model_predicts(kind):
    z, steps = noise_like(), torch.tensor([0, 3, 7])

    def loss(kind):
        grid = Grid.of(leaky_scheduler(kind), 32, 8)
        return float(distillation_loss(grid, gaussian_model(grid, 0.4), gaussian_model(grid), z, steps))

    assert loss(kind) == pytest.approx(loss("v_prediction"), rel=1e-3)


def test_a_teacher_of_as_many_steps_is_matched_by_itself():
    grid = Grid.of(zero_snr_schedule(), 8, 8)
    model = gaussian_model(grid)
    assert float(distillation_loss(grid, model, model, noise_like(), torch.tensor([0, 4, 7]))) < 1e-9


def test_backward_states_are_those_of_sampling_clip_by_clip():
    grid = Grid.of(zero_snr_schedule(), 32, 8)
    student, noise = gaussian_model(grid), noise_like()
    together = student_states(grid, student, noise, torch.tensor([0, 2, 5]))
    assert torch.equal(together[0], noise[0])
    for row, steps in ((1, 2), (2, 5)):
        z = noise[row : row + 1]
        for k in range(steps):
            z = student_step(grid, student, z, torch.tensor([k]))
        assert torch.allclose(together[row], z[0], atol=1e-6)


@pytest.mark.parametrize("make", [zero_snr_schedule, leaky_scheduler])
def test_the_teacher_lands_where_its_own_scheduler_leads(make):
    grid, scheduler = Grid.of(make(), 32, 8), make()
    teacher, landed = gaussian_model(grid), noise_like()
    sampled = landed
    scheduler.set_timesteps(32)
    for k, t in enumerate(scheduler.timesteps):
        sampled = scheduler.step(teacher(sampled, t.expand(3), None), t, sampled).prev_sample
        if k % 4 == 3:
            begin = torch.full((3,), k - 3)
            landed = teacher_landing(grid, teacher, landed, begin, begin + 4)
            assert torch.allclose(landed, sampled, atol=1e-4)


def test_a_teacher_of_flow_matching_lands_where_eulers_method_leads():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    grid = Grid.of(scheduler, 10, 4)
    teacher, z = gaussian_model(grid), noise_like()
    sampled = z
    for t in scheduler.timesteps:
        sampled = scheduler.step(teacher(sampled, t.expand(3), None), t, sampled).prev_sample
    landed = teacher_landing(grid, teacher, z, torch.zeros(3, dtype=torch.long), torch.full((3,), 10))
    assert torch.allclose(landed, sampled, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "corrected"),
    [
        (zero_snr_schedule, False),
        (zero_snr_schedule, True),
        (leaky_scheduler, False),
        (leaky_scheduler, True),
        (flow_scheduler, False),
    ],
)
def test_the_student_is_trained_along_the_path_that_it_is_served_on(make, corrected):
    grid = Grid.of(make(), 32, 8, noise_correction=corrected)
    own = {"sigmas": grid.student_sigmas} if make is flow_scheduler else {"noise_correction": grid.noise_correction}
    served = log_snr_solver(make(), solver_order=1, timesteps=grid.student_timesteps, **own)
    served.set_timesteps(8)
    student, z = gaussian_model(grid), noise_like()
    sample = z
    for k, t in enumerate(served.timesteps):
        assert float(t) == grid.student_timesteps[k]
        z = student_step(grid, student, z, torch.full((3,), k))
        prediction = student(sample, t.to(grid.timesteps.dtype).expand(3), None)
        sample = served.step(prediction, t, sample).prev_sample
        assert torch.allclose(sample, z, atol=2e-5)


def test_the_noise_correction_moves_along_the_noise_where_the_schedule_leaks():
    plain, corrected = (Grid.of(leaky_scheduler(), 32, 8, noise_correction=c) for c in (False, True))
    student, z = gaussian_model(plain), noise_like()
    first, later = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)
    a, s = plain.levels(first + 4, z)
    x = clean_of(z, student(z, plain.timesteps[first], None), *plain.levels(first, z), "v_prediction")
    assert torch.allclose(student_step(corrected, student, z, first), a * x + s * z, atol=1e-6)
    assert not torch.allclose(student_step(plain, student, z, first), a * x + s * z, atol=1e-3)
    assert torch.equal(student_step(corrected, student, z, later), student_step(plain, student, z, later))


def test_the_noise_correction_is_of_first_order():
    with pytest.raises(ValueError, match="noise_correction: is of solver_order 1"):
        log_snr_solver(zero_snr_schedule(), solver_order=2, noise_correction=True)


def test_forward_states_have_the_noise_of_their_time():
    grid = Grid.of(zero_snr_schedule(), 32, 8)
    clean, noise = torch.full(SHAPE, 2.0), noise_like()
    z = forward_states(grid, clean, noise, torch.tensor([0, 4, 7]))
    assert torch.allclose(z[0], noise[0], atol=1e-3)
    a, s = grid.levels(torch.tensor([28]), z)
    assert torch.allclose(z[2:], a * 2.0 + s * noise[2:], atol=1e-6)


@settings(max_examples=20)
@given(step=st.integers(0, 7), shift=st.floats(0.1, 1.0))
def test_the_shifted_loss_asks_the_teacher_later_on_the_grid(step, shift):
    grid = Grid.of(zero_snr_schedule(), 32, 8)
    asked = []

    def teacher(z, timesteps, rows):
        asked.append(int(timesteps[0]))
        return gaussian_model(grid)(z, timesteps, rows)

    weight = torch.ones((), requires_grad=True)
    student = gaussian_model(grid)
    loss = shifted_reconstruction_loss(
        grid,
        lambda z, t, rows: weight * student(z, t, rows),
        teacher,
        noise_like(),
        torch.full((3,), step),
        noise_like(seed=9),
        shift,
    )
    loss.backward()
    assert len(asked) == 4
    assert asked[0] <= grid.student_timesteps[step] or asked[0] == grid.student_timesteps[-1]
    assert weight.grad is not None
    assert math.isfinite(float(weight.grad))
