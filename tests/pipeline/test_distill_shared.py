"""LoRA on the teacher's own weights: one copy in memory, and a teacher that is as it was before."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from pipeline.distill.data import GeneratedSource
from pipeline.distill.memory import SharedBase
from pipeline.distill.passes import networks_of
from pipeline.distill.trainer import Distiller, DistillSettings

from .test_distill_flows import latents_of, teacher_of
from .trained import SAME, apart

SETTINGS = DistillSettings(
    student_steps=2, teacher_steps=4, updates=2, learning_rate=0.05, warmup=1, lora_rank=2, checkpoint_every=1
)
SOURCE = GeneratedSource(32, 9, 2, seed=1)


def weights(pipe) -> dict[str, Tensor]:
    found = {f"{part}.{name}": one for part, net in networks_of(pipe).items() for name, one in net.state_dict().items()}
    return copy.deepcopy(found)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["wan-2.2-ti2v", "wan-2.2-a14b"])
def test_the_students_weights_are_the_teachers_and_the_teacher_stays_as_it_was(name, tmp_path):
    teacher = teacher_of(name, tmp_path)
    before, clip = weights(teacher), latents_of(teacher, SOURCE, 2)
    distiller = Distiller(teacher, SOURCE, SETTINGS, tmp_path / "out")
    own = {one.data_ptr() for network in networks_of(teacher).values() for one in network.parameters()}
    with distiller.objective.attached():
        theirs = dict(distiller.accelerator.unwrap_model(distiller.student).named_parameters())
    assert own == {one.data_ptr() for name, one in theirs.items() if "lora_" not in name}
    assert all(one.requires_grad == ("lora_" in name) for name, one in theirs.items())

    student = distiller.train()
    assert same(weights(teacher), before)
    assert torch.equal(latents_of(teacher, SOURCE, 2), clip)
    changed = weights(student)
    assert changed.keys() == before.keys()
    moved = {key for key in before if not torch.equal(changed[key], before[key])}
    assert moved == {key for key in before if re.search(r"\.attn\d\.to_(q|k|v|out\.0)\.weight$", key)}
    # A student of the same network again, whose additions begin anew.
    distiller.close()
    again = Distiller(teacher, SOURCE, replace(SETTINGS, updates=1), tmp_path / "again")
    again.train()
    assert same(weights(teacher), before)


def test_what_is_learned_is_what_a_copy_of_the_weights_learns(tmp_path):
    """A student with a `start` has weights of its own; begun with the teacher's, it learns the same."""
    teacher = teacher_of("wan-2.2-ti2v", tmp_path)
    shared = Distiller(teacher, SOURCE, SETTINGS, tmp_path / "shared")
    copied = Distiller(teacher, SOURCE, replace(SETTINGS, start=str(tmp_path / "wan-2.2-ti2v")), tmp_path / "copied")
    found, wanted = weights(shared.train()), weights(copied.train())
    assert shared.losses == pytest.approx(copied.losses, rel=1e-4)
    assert apart(found.values(), wanted.values()) < SAME


def test_a_checkpoint_holds_the_additions_alone_and_a_run_goes_on_from_it(tmp_path):
    teacher = teacher_of("wan-2.2-ti2v", tmp_path)
    whole = weights(Distiller(teacher, SOURCE, SETTINGS, tmp_path / "whole").train())
    Distiller(teacher, SOURCE, SETTINGS, tmp_path / "broken").train(minutes=0)
    size = (tmp_path / "broken" / "checkpoint" / "model.safetensors").stat().st_size
    assert size < sum(one.nbytes for one in weights(teacher).values()) / 4
    distiller = Distiller(teacher, SOURCE, SETTINGS, tmp_path / "broken")
    assert distiller.resume()
    assert distiller.updates == 1
    assert apart(weights(distiller.train()).values(), whole.values()) < SAME


def test_a_teacher_in_half_precision_is_trained_on_as_it_is(tmp_path):
    teacher = teacher_of("wan-2.2-ti2v", tmp_path)
    teacher.transformer.to(torch.bfloat16)
    settings = replace(SETTINGS, gradient_checkpointing=True)
    distiller = Distiller(teacher, SOURCE, settings, tmp_path / "out")
    student = distiller.train()
    assert {one.dtype for one in distiller.trained} == {torch.float32}
    assert all(math.isfinite(loss) for loss in distiller.losses)
    assert student.transformer.dtype == torch.bfloat16


def test_additions_of_another_run_are_not_trained_on(tmp_path):
    teacher = teacher_of("wan-2.2-ti2v", tmp_path)
    distiller = Distiller(teacher, SOURCE, SETTINGS, tmp_path / "out")
    with distiller.objective.attached(), pytest.raises(ValueError, match="bears additions already"):
        SharedBase(networks_of(teacher), 2)


def test_an_expert_of_14_billion_weights_trains_in_the_memory_of_one_copy():
    """Added up on the meta device: what an update holds on to, without activations."""
    with torch.device("meta"):
        # Wan 2.2 A14B: 40 blocks of 40 heads of 128.
        network = WanTransformer3DModel(
            num_attention_heads=40,
            attention_head_dim=128,
            in_channels=36,
            out_channels=16,
            ffn_dim=13824,
            num_layers=40,
        ).to(torch.bfloat16)
        one_copy = size_of(network.parameters())
        base = SharedBase({"transformer": network}, rank=64)
    with base.attached():
        held = {id(one): one for one in network.parameters()}  # of student and teacher, each once
        added = [one for one in network.parameters() if one.requires_grad]
    # Of what is trained beside it: a gradient, AdamW's two moments, and the running average.
    total = size_of(held.values()) + 4 * size_of(added)
    assert one_copy == pytest.approx(28.6e9, rel=0.01)
    assert total == pytest.approx(32.8e9, rel=0.01)
    # With a copy of its own in float32 beside the teacher, as a student has that is trained in all its weights.
    assert total + 2 * one_copy == pytest.approx(89.9e9, rel=0.01)


def size_of(parameters) -> int:
    return sum(one.numel() * one.element_size() for one in parameters)


def test_a_module_that_bears_additions_is_found_wherever_it_is():
    network = nn.ModuleDict({"block": nn.ModuleDict({"to_q": nn.Linear(4, 4), "to_k": nn.Linear(4, 4)})})
    base = SharedBase({"transformer": network}, rank=1)
    assert sorted(name for name, _ in network.named_parameters()) == [
        f"block.to_{x}.{kind}" for x in "kq" for kind in ("bias", "weight")
    ]
    with base.attached():
        assert sum("lora_" in name for name, _ in network.named_parameters()) == 4
        with base.attached(on=False):
            assert not any("lora_" in name for name, _ in network.named_parameters())
