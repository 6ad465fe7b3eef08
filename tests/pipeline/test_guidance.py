from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.guidance import Guidance

scales = st.floats(0, 100, allow_subnormal=False)
image_scales = st.none() | scales
BRANCHES = {"uncond": 0, "image": 1, "full": 2}


@given(text=scales, image=image_scales)
def test_the_weights_of_the_branches_sum_to_one(text, image):
    assert math.isclose(sum(weight for _, weight in Guidance(text, image).weights), 1, abs_tol=1e-9)


@given(text=scales, image=scales, seed=st.integers(0, 2**31))
def test_three_branches_combine_by_the_formula(text, image, seed):
    every = torch.randn(3, 2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    guidance = Guidance(text, image)
    stacked = torch.cat([every[BRANCHES[name]] for name, _ in guidance.weights])
    uncond, image_only, full = every
    expected = uncond + image * (image_only - uncond) + text * (full - image_only)
    assert torch.allclose(guidance.combine(stacked), expected, atol=1e-9)


@given(text=scales, seed=st.integers(0, 2**31))
def test_two_branches_combine_by_the_formula_and_only_above_a_scale_of_one(text, seed):
    negative, full = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    guidance = Guidance(text)
    if text > 1:
        assert [name for name, _ in guidance.weights] == ["negative", "full"]
        expected = negative + text * (full - negative)
        assert torch.allclose(guidance.combine(torch.cat([negative, full])), expected, atol=1e-9)
    else:
        assert [name for name, _ in guidance.weights] == ["full"]
        assert torch.equal(guidance.combine(full), full)


@given(text=scales, image=image_scales)
def test_branches_that_agree_are_not_changed(text, image):
    guidance = Guidance(text, image)
    same = torch.ones(guidance.passes, 3, dtype=torch.float64)
    assert torch.allclose(guidance.combine(same), same[:1], atol=1e-9)


@given(text=scales, image=image_scales)
def test_a_pass_is_spent_on_each_branch_that_counts_and_on_no_other(text, image):
    guidance = Guidance(text, image)
    assert 1 <= guidance.passes <= (2 if image is None else 3)
    assert all(weight != 0 for _, weight in guidance.weights)
    assert guidance.passes == len(guidance.weights)


@pytest.mark.parametrize(
    ("text", "image", "names"),
    [
        (3.0, 1.5, ["uncond", "image", "full"]),
        (1.0, 1.0, ["full"]),
        (2.0, 1.0, ["image", "full"]),
        (0.0, 1.0, ["image"]),
        (0.0, 0.0, ["uncond"]),
        (2.0, 2.0, ["uncond", "full"]),
    ],
)
def test_a_branch_of_no_weight_is_left_out(text, image, names):
    assert [name for name, _ in Guidance(text, image).weights] == names


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.1, 100.1, 1e300])
@pytest.mark.parametrize("field", ["guidance_scale", "image_guidance_scale"])
def test_a_scale_that_is_no_scale_is_refused_by_name(field, value):
    scales = {"guidance_scale": (value, None), "image_guidance_scale": (1.0, value)}[field]
    with pytest.raises(ValueError, match=rf"^{field}: .* is outside 0 to 100"):
        Guidance(*scales)
