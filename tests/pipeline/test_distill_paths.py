"""Paths of the teacher that are sampled once: which batch learns what of them, and training on them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import ImageAnimationPipeline
from pipeline.distill.paths import KeptPath, KeptPaths
from pipeline.distill.trainer import Distiller, DistillSettings

from .test_distill_training import SETTINGS, Source, Stop, same, state

ON_PATHS = replace(SETTINGS, trajectory="teacher", kept_batches=2)


@pytest.fixture
def teacher(one_level_i2vgen) -> ImageAnimationPipeline:
    one_level_i2vgen.register_to_config(num_inference_steps=4, guidance_scale=2.0, image_guidance_scale=1.5)
    return one_level_i2vgen


@given(clips=st.integers(1, 9), steps=st.integers(1, 8), seed=st.integers(0, 1000))
def test_each_clip_of_a_kept_path_learns_each_step_once_in_as_many_visits(clips, steps, seed):
    order = torch.randperm(steps, generator=torch.Generator().manual_seed(seed))
    states = torch.arange(clips * (steps + 1)).view(clips, steps + 1)
    path = KeptPath(states, {}, order)
    learned = []
    for visit in range(steps):
        z, landed, which = path.at(visit)
        assert torch.equal(z, states[range(clips), which])
        assert torch.equal(landed, z + 1)
        assert len(set(which.tolist())) == min(clips, steps)
        learned.append(which)
    assert torch.equal(torch.stack(learned).sort(dim=0).values, torch.arange(steps)[:, None].expand(-1, clips))


@given(count=st.integers(1, 6), processes=st.integers(1, 3), batches=st.integers(1, 40))
def test_kept_paths_come_round_and_no_two_processes_share_one(count, processes, batches):
    wanted = []
    for rank in range(processes):
        numbers = [number * processes + rank for number in range(batches)]
        paths = KeptPaths(count, processes)
        own = paths.missing(numbers)
        assert len(own) == min(count, batches)
        wanted += own
        for name in own:
            paths[name] = KeptPath(torch.tensor([[name, -1]]), {"name": torch.tensor(name)}, torch.tensor([0]))
        assert paths.missing(numbers) == []
        seen = [int(paths.batch(number)[3]["name"]) for number in numbers]
        assert seen == [own[k % count] for k in range(batches)]
    assert len(set(wanted)) == len(wanted)


def test_a_run_samples_each_path_once_and_goes_on_bit_by_bit(teacher, tmp_path):
    # What lies beyond the kept batches is not read.
    whole, told = Distiller(teacher, Source(refused=(2, 3)), ON_PATHS, tmp_path / "whole"), []
    whole.keep_paths(lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    calls = []
    hook = teacher.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    whole.train()
    hook.remove()
    assert calls == []

    def stop(done, _total, _loss):
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        Distiller(teacher, Source(), ON_PATHS, tmp_path / "broken").train(stop)
    again = Distiller(teacher, Source(), ON_PATHS, tmp_path / "broken")
    again.train()
    assert again.updates == 4
    assert same(state(again), state(whole))


def test_a_student_learns_where_the_teacher_lands_on_a_kept_path(teacher, tmp_path):
    settings = replace(ON_PATHS, updates=16, warmup=1, kept_batches=1, learning_rate=3e-3)
    distiller = Distiller(teacher, Source(), settings, tmp_path)
    distiller.train()
    assert sum(distiller.losses[-2:]) < 0.9 * sum(distiller.losses[:2])


def test_a_scale_that_is_drawn_stays_that_of_its_path(teacher, tmp_path):
    settings = replace(ON_PATHS, guidance_range=(1.0, 4.0), kept_batches=1)
    distiller = Distiller(teacher, Source(), settings, tmp_path)
    distiller.keep_paths()
    first, second = (distiller.paths.batch(number)[3]["guidance"] for number in (0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_imagine_flashs_loss_and_no_paths_at_all_are_refused():
    with pytest.raises(ValueError, match=r"^shifted_reconstruction: asks the teacher in each update"):
        DistillSettings(trajectory="teacher", shifted_reconstruction=True)
    with pytest.raises(ValueError, match=r"^kept_batches: 0 is below 1"):
        DistillSettings(kept_batches=0)
