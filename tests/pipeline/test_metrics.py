from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.judge.metrics import diversity, flicker, psnr_db, ssim


@pytest.mark.parametrize(("error", "expected"), [(0.1, 20.0), (0.01, 40.0), (0.5, 6.0206)])
def test_psnr_is_that_of_a_constant_error(error, expected):
    target = torch.full((3, 2, 4, 5), 0.4)
    assert torch.allclose(psnr_db(target + error, target), torch.full((3,), expected), atol=1e-3)


def test_psnr_is_counted_for_each_item_of_a_batch():
    target = torch.zeros(2, 3)
    assert psnr_db(torch.tensor([[0.1] * 3, [1.0] * 3]), target).tolist() == pytest.approx([20.0, 0.0], abs=1e-4)


def test_equal_pictures_have_the_highest_psnr_there_is():
    assert psnr_db(torch.ones(1, 4), torch.ones(1, 4)).item() == pytest.approx(100.0)


def test_what_a_file_would_clip_is_no_error():
    assert psnr_db(torch.tensor([[1.7, -0.3]]), torch.tensor([[1.0, 0.0]])).item() == pytest.approx(100.0)


def random_clips(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def ssim_by_loops(x: torch.Tensor, y: torch.Tensor) -> float:
    """Equation 13 of Wang et al. 2004 as it stands there, window by window, for one map."""
    size = 11
    places = torch.arange(size, dtype=torch.float64) - 5
    line = torch.exp(-(places**2) / (2 * 1.5**2))
    weights = torch.outer(line, line)
    weights = weights / weights.sum()
    values = []
    for top in range(x.shape[0] - size + 1):
        for left in range(x.shape[1] - size + 1):
            a, b = (part[top : top + size, left : left + size].double() for part in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            cov = (weights * (a - mean_a) * (b - mean_b)).sum()
            above = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
            values.append(above / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    return float(torch.stack(values).mean())


def test_ssim_is_the_papers_formula():
    x, y = random_clips(0, 1, 2, 3, 16, 14), random_clips(1, 1, 2, 3, 16, 14)
    y = 0.6 * x + 0.4 * y
    by_hand = [ssim_by_loops(x[0, c, t], y[0, c, t]) for c in range(2) for t in range(3)]
    assert ssim(x, y).item() == pytest.approx(sum(by_hand) / 6, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), height=st.integers(1, 20), width=st.integers(1, 20), clip=st.booleans())
def test_ssim_is_symmetric_bounded_and_1_for_equal_clips_of_any_size(seed, height, width, clip):
    shape = (2, 3, *([2] if clip else []), height, width)
    x, y = random_clips(seed, *shape), random_clips(seed + 1, *shape)
    there, back = ssim(x, y), ssim(y, x)
    assert there.shape == (2,)
    assert torch.allclose(there, back, atol=1e-6)
    assert there.abs().max() <= 1 + 1e-6
    assert torch.allclose(ssim(x, x), torch.ones(2), atol=1e-6)


def test_ssim_of_two_grey_pictures_is_that_of_their_brightness():
    # No variance: (2 * 0.2 * 0.6 + C1) / (0.2^2 + 0.6^2 + C1)
    x, y = torch.full((1, 3, 2, 32, 32), 0.2), torch.full((1, 3, 2, 32, 32), 0.6)
    assert ssim(x, y).item() == pytest.approx((0.24 + 1e-4) / (0.4 + 1e-4), abs=1e-5)


def test_ssim_falls_with_noise_and_is_counted_for_each_clip():
    x = random_clips(0, 1, 3, 2, 24, 24).repeat(3, 1, 1, 1, 1)
    noise = random_clips(1, 1, 3, 2, 24, 24) - 0.5
    values = ssim(x + noise * torch.tensor([0.0, 0.1, 0.5]).view(3, 1, 1, 1, 1), x).tolist()
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 3


def test_ssim_names_shapes_that_differ():
    with pytest.raises(ValueError, match=r"output: shape .* the target's"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))


@settings(max_examples=25, deadline=None)
@given(frames=st.integers(1, 8), start=st.floats(0, 0.5), rate=st.floats(-0.05, 0.05))
def test_a_steady_change_of_brightness_does_not_flicker(frames, start, rate):
    levels = start + rate * torch.arange(frames)
    assert flicker(levels.view(1, 1, -1, 1, 1).expand(2, 3, -1, 4, 4)).tolist() == pytest.approx([0, 0], abs=1e-3)


def test_flicker_is_the_mean_second_difference_in_steps_of_255():
    to_and_fro = torch.tensor([0.0, 1.0, 0.0, 1.0]).view(1, 1, 4, 1, 1)
    still = torch.ones(1, 1, 4, 1, 1)
    assert flicker(torch.cat([to_and_fro, 0.1 * to_and_fro, still])).tolist() == pytest.approx([510, 51, 0], abs=1e-3)


def test_diversity_is_the_mean_rms_distance_of_pairs():
    # 0, 0.1 and 0.4 everywhere: distances 0.1, 0.4 and 0.3.
    levels = torch.tensor([[0.0, 0.1, 0.4], [0.5, 0.5, 0.5]])
    videos = levels.view(2, 3, 1, 1, 1, 1).expand(2, 3, 3, 2, 4, 4)
    assert diversity(videos).tolist() == pytest.approx([255 * 0.8 / 3, 0], abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), seeds=st.integers(2, 5))
def test_diversity_does_not_depend_on_the_order_of_seeds(seed, seeds):
    videos = random_clips(seed, 2, seeds, 3, 2, 4, 4)
    order = torch.randperm(seeds, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(diversity(videos), diversity(videos[:, order]), rtol=1e-5)
    # Pixels uniform in [0, 1]: a mean square difference of 1/6.
    assert diversity(videos).mean().item() == pytest.approx(255 * math.sqrt(1 / 6), rel=0.3)


def test_one_clip_has_no_diversity():
    with pytest.raises(ValueError, match="videos: 1 clips"):
        diversity(torch.zeros(2, 1, 3, 2, 4, 4))
