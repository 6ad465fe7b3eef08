from __future__ import annotations

import pytest
import torch

from pipeline.metrics import psnr_db


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
