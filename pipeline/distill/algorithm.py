"""Guidance and step distillation combined, apart from any model and any training loop.

A noisy sample at time t is z_t = a_t * x + s_t * e, with clean sample x and noise e. Of a schedule with betas
a_t^2 + s_t^2 = 1, of flow matching a_t + s_t = 1; what follows holds for both. A DDIM step (Song et al. 2021, eq. 12,
with eta = 0; of flow matching a step of Euler's method) from t to an earlier u keeps x and e::

    z_u = a_u * x + s_u * e,    e = (z_t - a_t * x) / s_t

**Step distillation** (Salimans & Ho 2022, section 3). The teacher takes n steps from t and lands at
z_u. One DDIM step lands at the same z_u if its x is (solve the two lines above for x)::

    x* = (z_u - (s_u / s_t) * z_t) / (a_u - (s_u / s_t) * a_t)

and this x* is what the student has to predict at (z_t, t). It is finite everywhere: at the start, of pure
noise, a_t = 0 and s_t = 1; at the end s_u = 0, a_u = 1 and x* = z_u.

**Guidance distillation** (Meng et al. 2023, section 3.2). Each of the teacher's n steps combines the
passes of all its guidance branches with their scales; the student predicts the result in one pass. Both
papers' targets are one here: 5 steps of 2 passes become 1 step of 1 pass.

**Parametrisation and weight.** With v = a_t * e - s_t * x (Salimans & Ho 2022, section 4 and appendix D),
v* = (a_t * z_t - x*) / s_t, and the loss is the mean of |v - v*|^2 = |x - x*|^2 / s_t^2, whatever the
model predicts: an x-loss with the paper's weight "SNR + 1". Of a flow f = e - x, whose clip is x = z_t - s_t * f,
it is the mean of |f - f*|^2.

**Where z_t comes from.** `Trajectory.FORWARD`: a training clip with noise added, as both papers have it.
`Trajectory.BACKWARD`: the student's own sampling from pure noise, stopped at t (Kohler et al. 2024,
"Imagine Flash", section 3.1). There no clip leaks into the student's input that it will not see when it
is used, and none is needed: pictures and captions are enough.

**Noise correction** (Kohler et al. 2024, section 3.3). Sampling starts from pure noise, also where the
schedule's first level leaks a little of the clip. There the noise is known and need not be worked out
from the prediction: the student's first step moves along z itself, as if a were 0 and s were 1. At zero
terminal SNR it is so anyway, and the correction changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import StillmotionError
from ..model.flow_solver import is_flow
from ..model.grid_solver import told_in_log_sigma

Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`(z, timesteps, rows) -> prediction`: z `(n, ...)`, timesteps `(n,)`, and the rows of the batch that z
stands for, `(n,)`, or None for all in order. The prediction is of z's shape and of the model's own kind."""

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]


class NotSplittable(StillmotionError):
    """The teacher's schedule has no grid that a student's steps can be taken from; the text says why."""


class Trajectory(StrEnum):
    """Where the noisy clips come from that the student is trained on."""

    FORWARD = "forward"
    BACKWARD = "backward"


@dataclass(frozen=True)
class Grid:
    """The teacher's time grid, and at which of its steps the student's begin.

    Attributes:
        timesteps: `(n,)`, what the network is told at the teacher's steps, falling.
        alphas, sigmas: `(n + 1,)`, of the same times and of the end, where they are 1 and 0.
        starts: `(m + 1,)`, steps of the teacher at which those of the student begin, and n.
        prediction_type: of teacher and student.
        noise_correction: whether the student's first step is corrected.
        in_step: whether the teacher is called as often for each batch as for the one that needs most calls.
    """

    timesteps: Tensor
    alphas: Tensor
    sigmas: Tensor
    starts: Tensor
    prediction_type: PredictionType
    noise_correction: bool = False
    in_step: bool = False

    @classmethod
    def of(
        cls,
        scheduler: Any,
        teacher_steps: int,
        student_steps: int,
        noise_correction: bool = False,
        *,
        lay: Callable[[Any, int], None] | None = None,
        boundary: float | None = None,
    ) -> Grid:
        """Return the grid of a diffusers scheduler with betas or of flow matching.

        The student's steps are as equal in steps of the teacher as they can be.

        Args:
            lay: sets the scheduler to a number of steps; None: `set_timesteps`.
            boundary: timestep below which another network predicts: a step of the student begins where it does.

        Raises:
            NotSplittable: the student has more steps than the teacher, the scheduler has noise levels that are not
                known, or the teacher predicts noise where its schedule begins with nothing but noise.
        """
        if not 0 < student_steps <= teacher_steps:
            raise NotSplittable(f"student_steps: {student_steps} is not within 1 and the teacher's {teacher_steps}")
        (lay or type(scheduler).set_timesteps)(scheduler, teacher_steps)
        timesteps = scheduler.timesteps.cpu()
        if len(timesteps) != teacher_steps or (timesteps.diff() >= 0).any():
            raise NotSplittable(f"steps: the teacher's grid of {teacher_steps} steps is not one of falling timesteps")
        if is_flow(scheduler):
            if noise_correction:
                raise NotSplittable("noise_correction: a schedule of flow matching begins with noise, and needs none")
            kind: PredictionType = "flow_prediction"
            sigmas = scheduler.sigmas.cpu().float()
            alphas = 1 - sigmas
        elif told_in_log_sigma(scheduler):
            kind, ratios = "v_prediction", scheduler.sigmas.cpu().double()  # sigma over alpha
            alphas = (1 / (ratios**2 + 1).sqrt()).float()
            sigmas = (ratios / (ratios**2 + 1).sqrt()).float()
        else:
            kind, timesteps = scheduler.config.prediction_type, timesteps.to(torch.long)
            alphas, sigmas = _levels_of_betas(scheduler, timesteps)
        starts = [round(k * teacher_steps / student_steps) for k in range(student_steps + 1)]
        if boundary is not None:
            starts = _beginning_at(starts, int((timesteps >= boundary).sum()))
        return cls(timesteps, alphas, sigmas, torch.tensor(starts), kind, noise_correction)

    def to(self, device: torch.device) -> Grid:
        moved = {name: getattr(self, name).to(device) for name in ("timesteps", "alphas", "sigmas", "starts")}
        return replace(self, **moved)

    @property
    def teacher_steps(self) -> int:
        return len(self.timesteps)

    @property
    def student_steps(self) -> int:
        return len(self.starts) - 1

    @property
    def student_timesteps(self) -> list[float]:
        """What the student is told when it is served."""
        return [float(t) for t in self.timesteps[self.starts[:-1]]]

    @property
    def student_sigmas(self) -> list[float]:
        """Sigmas at which the student's steps begin."""
        return [float(sigma) for sigma in self.sigmas[self.starts[:-1]]]

    @property
    def student_alphas(self) -> list[float]:
        """Alphas of the same times."""
        return [float(alpha) for alpha in self.alphas[self.starts[:-1]]]

    def levels(self, at: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and s at places `at` of the grid, `(n,)`, shaped so that they multiply `like`, `(n, ...)`."""
        shape = (-1, *[1] * (like.dim() - 1))
        return self.alphas[at].view(shape), self.sigmas[at].view(shape)

    def student_levels(self, at: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same for the start of a student's step, with the noise correction where it is wanted."""
        a, s = self.levels(at, like)
        if not self.noise_correction:
            return a, s
        first = (at == 0).view(a.shape)
        return torch.where(first, torch.zeros_like(a), a), torch.where(first, torch.ones_like(s), s)


def clean_of(z: Tensor, prediction: Tensor, a: Tensor, s: Tensor, kind: PredictionType) -> Tensor:
    """Return the clean sample x that a prediction stands for."""
    match kind:
        case "v_prediction":
            return a * z - s * prediction
        case "epsilon":
            return (z - s * prediction) / a
        case "sample":
            return prediction
        case "flow_prediction":
            return z - s * prediction


def velocity_of(z: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """Return v of a clean sample: (a * z - x) / s."""
    return (a * z - x) / s


def move(z: Tensor, x: Tensor, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> Tensor:
    """Take one DDIM step from `start` to `end`, each (a, s)."""
    (a, s), (a_end, s_end) = start, end
    return a_end * x + s_end / s * (z - a * x)


def landing_target(z: Tensor, landed: Tensor, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> Tensor:
    """x* with which one step from `start` lands at `landed`; the inverse of `move`."""
    (a, s), (a_end, s_end) = start, end
    return (landed - s_end / s * z) / (a_end - s_end / s * a)


def teacher_landing(grid: Grid, teacher: Predict, z: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Return where the teacher lands when it goes from its steps `begin`, `(n,)`, to its steps `end`, `(n,)`."""
    for k in range(int(grid.starts.diff().max() if grid.in_step else (end - begin).max())):
        # Where a clip has arrived, what is computed of it is left out.
        at = torch.minimum(begin + k, end - 1)
        levels = grid.levels(at, z)
        prediction = teacher(z, grid.timesteps[at], None).float()
        moved = move(z, clean_of(z, prediction, *levels, grid.prediction_type), levels, grid.levels(at + 1, z))
        z = torch.where((begin + k < end).view(-1, *[1] * (z.dim() - 1)), moved, z)
    return z


def student_step(grid: Grid, student: Predict, z: Tensor, steps: Tensor, rows: Tensor | None = None) -> Tensor:
    """Take one step of the student, which one `steps`, `(n,)`, says.

    Args:
        rows: which of the batch z is, for `student`.
    """
    begin, end = grid.starts[steps], grid.starts[steps + 1]
    prediction = student(z, grid.timesteps[begin], rows).float()
    x = clean_of(z, prediction, *grid.levels(begin, z), grid.prediction_type)
    return move(z, x, grid.student_levels(begin, z), grid.levels(end, z))


@torch.no_grad()
def student_states(grid: Grid, student: Predict, noise: Tensor, steps: Tensor) -> Tensor:
    """Return where the student is after as many of its own steps from pure noise as `steps` says, clip by clip.

    Args:
        noise: `(batch, ...)`, of unit variance.
        steps: `(batch,)`, 0 to `student_steps - 1`.
    """
    # The grid's first level need not be pure noise (most published schedules leak a little): sampling
    # starts from noise all the same, and so does this.
    z = noise.clone()
    for k in range(int(steps.max())):
        rows = (steps > k).nonzero().squeeze(1)
        z[rows] = student_step(grid, student, z[rows], torch.full_like(rows, k), rows)
    return z


def forward_states(grid: Grid, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
    """Return training clips with the noise of the times at which the student's `steps` begin."""
    a, s = grid.levels(grid.starts[steps], clean)
    return a * clean + s * noise


def distillation_loss(grid: Grid, student: Predict, teacher: Predict, z: Tensor, steps: Tensor) -> Tensor:
    """Return mean of |v - v*|^2: the student's step against as many of the teacher's as it stands for.

    Args:
        teacher: with all its guidance branches combined.
        z: `(batch, ...)`, where the student's steps begin.
        steps: `(batch,)`, which of the student's steps.
    """
    begin, end = grid.starts[steps], grid.starts[steps + 1]
    with torch.no_grad():
        landed = teacher_landing(grid, teacher, z, begin, end)
        x = landing_target(z, landed, grid.student_levels(begin, z), grid.levels(end, z))
        target = velocity_of(z, x, *grid.levels(begin, z))
    return (_velocity(grid, student, z, begin) - target).square().mean()


def shifted_reconstruction_loss(
    grid: Grid, student: Predict, teacher: Predict, z: Tensor, steps: Tensor, noise: Tensor, shift: float
) -> Tensor:
    """Imagine Flash's loss (section 3.2): the teacher corrects the student's clean sample.

    The student's x at t is noised again, to a time shifted towards the end, and the teacher denoises it
    from there for as long as one step of the student lasts. Early steps are corrected in what the clip
    shows, late ones in its detail. The paper leaves its shift open; here the place on the grid is
    multiplied: `shift` 1 is no shift, and smaller is later.

    Args:
        noise: `(batch, ...)`, fresh.
    """
    at = grid.starts[steps]
    length = grid.starts[steps + 1] - at
    start = grid.levels(at, z)
    velocity = _velocity(grid, student, z, at)
    with torch.no_grad():
        a, s = start
        x = a * z - s * velocity.detach()
        left = grid.teacher_steps - at
        shifted = torch.minimum((grid.teacher_steps - left * shift).round().long(), grid.teacher_steps - length)
        begin, end = grid.levels(shifted, z), grid.levels(shifted + length, z)
        renoised = begin[0] * x + begin[1] * noise
        landed = teacher_landing(grid, teacher, renoised, shifted, shifted + length)
        target = velocity_of(z, landing_target(renoised, landed, begin, end), *start)
    return (velocity - target).square().mean()


def _velocity(grid: Grid, student: Predict, z: Tensor, at: Tensor) -> Tensor:
    a, s = grid.levels(at, z)
    prediction = student(z, grid.timesteps[at], None).float()
    if grid.prediction_type == "v_prediction":
        return prediction
    return velocity_of(z, clean_of(z, prediction, a, s, grid.prediction_type), a, s)


def _levels_of_betas(scheduler: Any, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and s at timesteps `(n,)` and at the end, `(n + 1,)` each.

    Raises:
        NotSplittable: there are none, or the network says nothing of the clip at the first.
    """
    if getattr(scheduler, "betas", None) is None:
        raise NotSplittable(f"scheduler: {type(scheduler).__name__} has no betas to take a grid from")
    squares = scheduler.alphas_cumprod.cpu().double()[timesteps]
    if scheduler.config.prediction_type == "epsilon" and squares[0] < 1e-6:
        raise NotSplittable("scheduler: a prediction of noise says nothing of the clip at zero terminal SNR")
    squares = torch.cat([squares, torch.ones(1, dtype=squares.dtype)])
    return squares.sqrt().float(), (1 - squares).sqrt().float()


def _beginning_at(starts: list[int], place: int) -> list[int]:
    """Return starts of which the nearest is moved to `place`; the first and the end stay."""
    if place in starts or not starts[0] < place < starts[-1]:
        return starts
    if len(starts) == 2:
        raise NotSplittable("student_steps: 1 is below 2; each of the teacher's two networks needs a step of its own")
    nearest = min(range(1, len(starts) - 1), key=lambda k: abs(starts[k] - place))
    return sorted([*starts[:nearest], place, *starts[nearest + 1 :]])
