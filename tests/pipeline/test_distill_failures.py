"""What goes wrong while a student is trained: numbers, disks, examples, settings."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace

import pytest
import torch

from pipeline import ImageAnimationPipeline
from pipeline.distill.trainer import DistillationError, Distiller
from pipeline.errors import StillmotionError

from .conftest import files_of_at_most
from .test_distill_training import SETTINGS, Source


@pytest.fixture
def teacher(pia) -> ImageAnimationPipeline:
    pia.register_to_config(num_inference_steps=4, guidance_scale=2.0, num_frames=3, fps=8)
    return pia


def test_a_loss_that_is_no_number_stops_at_its_update(teacher, tmp_path):
    settings = replace(SETTINGS, trajectory="forward")
    with pytest.raises(DistillationError, match=r"the loss is nan at update 3; the checkpoint of update 2 is kept"):
        Distiller(teacher, Source(damaged=(2,)), settings, tmp_path).train()
    distiller = Distiller(teacher, Source(), settings, tmp_path)
    distiller.train()
    assert distiller.updates == 4


def test_a_gradient_that_is_no_number_changes_no_weight(teacher, tmp_path):
    distiller = Distiller(teacher, Source(), SETTINGS, tmp_path)
    before = [p.clone() for p in distiller.trained]
    distiller.trained[0].register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(DistillationError, match=r"the gradient is .* at update 1; no checkpoint"):
        distiller.train()
    assert all(torch.equal(a, b) for a, b in zip(before, distiller.trained, strict=True))


# Of these files the weights come first, and AdamW's state, twice as large, after them.
@pytest.mark.parametrize("size", [200_000, 600_000])
def test_a_full_disk_leaves_the_old_checkpoint(teacher, tmp_path, size):
    settings = replace(SETTINGS, updates=2, checkpoint_every=1)

    def fill(done, _total, _loss):
        if done == 2:
            limits.enter_context(files_of_at_most(size))

    with contextlib.ExitStack() as limits, pytest.raises(DistillationError) as raised:
        Distiller(teacher, Source(), settings, tmp_path).train(fill)
    assert str(raised.value).startswith(f"{tmp_path}: the checkpoint of update 2 cannot be written (")
    assert str(raised.value).endswith(f"; the checkpoint of update 1 is kept in {tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    distiller = Distiller(teacher, Source(), settings, tmp_path)
    assert distiller.resume()
    assert distiller.updates == 1


def _change_a_weight_in_the_middle(teacher: ImageAnimationPipeline) -> None:
    teacher.unet.mid_block.resnets[0].conv1.weight.data[0, 0, 0, 0] += 1e-3


def _change_the_text_encoder(teacher: ImageAnimationPipeline) -> None:
    next(iter(teacher.text_encoder.parameters())).data[0, 0] += 1e-3


def _change_the_scheduler(teacher: ImageAnimationPipeline) -> None:
    teacher.register_modules(scheduler=type(teacher.scheduler).from_config(teacher.scheduler.config, beta_end=0.013))


@pytest.mark.parametrize(
    "change", [_change_a_weight_in_the_middle, _change_the_text_encoder, _change_the_scheduler, None]
)
def test_a_run_goes_on_with_the_very_same_teacher_alone(teacher, tmp_path, change):
    teacher = copy.deepcopy(teacher)  # its parts are those of other tests
    settings = replace(SETTINGS, updates=1)
    Distiller(teacher, Source(), settings, tmp_path).train()
    if change is None:
        assert Distiller(copy.deepcopy(teacher), Source(), settings, tmp_path).resume()
        return
    change(teacher)
    with pytest.raises(DistillationError, match=r"made with other settings \(teacher: UNetMotionModel"):
        Distiller(teacher, Source(), settings, tmp_path).resume()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_example_that_cannot_be_read_keeps_its_text(teacher, tmp_path, workers):
    with pytest.raises(StillmotionError, match=r"^number 1 is refused$"):
        Distiller(teacher, Source(refused=(1,)), replace(SETTINGS, workers=workers), tmp_path).train()


def test_forward_trajectories_need_clips(teacher, tmp_path):
    source = Source()
    source.has_clips = False
    with pytest.raises(ValueError, match=r"^trajectory: 'forward' needs clips"):
        Distiller(teacher, source, replace(SETTINGS, trajectory="forward"), tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("updates", 0), ("warmup", -1), ("ema_decay", 1.0), ("mixed_precision", "fp8"), ("shift", 0.0)]
)
def test_a_setting_that_does_not_fit_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        replace(SETTINGS, **{name: value})
