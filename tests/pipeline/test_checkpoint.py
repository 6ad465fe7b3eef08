"""A checkpoint survives what may happen to it, and a schedule of training does what it says."""

from __future__ import annotations

import math
import time

import pytest
import torch

from pipeline.errors import StillmotionError
from pipeline.train.checkpoint import Checkpoint, end_of
from pipeline.train.settings import learning_rate

from .conftest import files_of_at_most


def test_the_learning_rate_warms_up_and_decays():
    rates = [learning_rate(step, 1000, 1e-3, warmup=100) for step in range(1001)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(2e-5)


def test_a_checkpoint_puts_every_part_back(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    Checkpoint(tmp_path / "run" / "c.pt", model=model, optimizer=optimizer).save(17)

    other = torch.nn.Linear(3, 3)
    restored = torch.optim.AdamW(other.parameters())
    assert Checkpoint(tmp_path / "run" / "c.pt", model=other, optimizer=restored).load() == 17
    assert torch.equal(model.weight, other.weight)
    assert restored.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


def test_nothing_to_restore_is_step_zero(tmp_path):
    assert Checkpoint(tmp_path / "none.pt").load() == 0


def test_a_save_that_fails_leaves_the_last_good_checkpoint(tmp_path):
    good = Checkpoint(tmp_path / "c.pt", model=torch.nn.Linear(2, 2))
    good.save(1)
    broken = Checkpoint(tmp_path / "c.pt", model=torch.nn.Linear(2, 2), other=object())
    with pytest.raises(AttributeError):
        broken.save(2)
    assert good.load() == 1


@pytest.mark.parametrize("size", [0, 300])
def test_a_full_disk_is_one_line_and_leaves_the_last_good_checkpoint(tmp_path, size):
    model = torch.nn.Linear(64, 64)
    checkpoint = Checkpoint(tmp_path / "c.pt", model=model)
    checkpoint.save(1)
    with files_of_at_most(size), pytest.raises(StillmotionError, match=r"^.*c\.pt: cannot be written \(") as caught:
        checkpoint.save(2)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
    assert checkpoint.load() == 1


def test_a_deadline_of_none_never_passes_and_one_of_zero_has():
    assert end_of(None) == math.inf
    assert end_of(0) <= time.monotonic() < end_of(10)
