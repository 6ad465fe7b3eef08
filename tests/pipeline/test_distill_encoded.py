"""Captions and pictures of a folder are encoded once, and a student learns from that what it learns without it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.distill.data import GeneratedSource
from pipeline.distill.encoded import EncodedSource, encode_once
from pipeline.distill.folders import CaptionedSource, open_folder
from pipeline.distill.passes import networks_of
from pipeline.distill.trainer import Distiller, DistillSettings
from pipeline.errors import StillmotionError
from pipeline.media.video import encode

from .test_distill_flows import teacher_of
from .trained import SAME, apart

SETTINGS = DistillSettings(student_steps=2, teacher_steps=4, updates=3, learning_rate=1e-3, warmup=1)
CAPTIONS = ("a red circle moves up", "a blue star grows", "a red circle moves up")


@pytest.fixture
def folder(tmp_path, picture) -> Path:
    """Three pictures, two of them with one caption."""
    found = tmp_path / "pictures"
    found.mkdir()
    for number, caption in enumerate(CAPTIONS):
        picture(40, 36).rotate(90 * number).save(found / f"{number}.png")
        (found / f"{number}.txt").write_text(caption)
    return found


@pytest.fixture
def teacher(tmp_path):
    return teacher_of("wan-2.1", tmp_path)


def source_of(folder: Path, **more: int) -> CaptionedSource:
    source = open_folder(folder, frames=9, height=32, width=32, batch=2, **more)
    assert isinstance(source, CaptionedSource)
    return source


def counted(teacher, name: str) -> list[int]:
    """Number of examples of each pass of an encoder."""
    seen: list[int] = []
    part = getattr(teacher, name)
    module = part.encoder if name == "vae" else part
    module.register_forward_hook(lambda _module, given, _output: seen.append(len(given[0])))
    return seen


def weights(pipe) -> dict[str, Tensor]:
    return {name: value for one in networks_of(pipe).values() for name, value in one.state_dict().items()}


def test_each_caption_and_picture_is_encoded_once_and_the_student_is_the_same(folder, teacher, tmp_path, capsys):
    texts, pictures = counted(teacher, "text_encoder"), counted(teacher, "image_encoder")
    plain = Distiller(teacher, source_of(folder), replace(SETTINGS, encode_once=False), tmp_path / "each").train()
    # Three updates of two clips: prompt and negative prompt of each, and its picture.
    assert (sum(texts), sum(pictures)) == (12, 6)
    texts.clear(), pictures.clear()
    distiller = Distiller(teacher, source_of(folder), SETTINGS, tmp_path / "once")
    once = distiller.train()
    assert (sum(texts), sum(pictures)) == (3, 3)  # two captions and the negative prompt
    said = "3 texts and 3 pictures are encoded once: 6 passes of the encoders, where 6 clips would take 18"
    assert said in capsys.readouterr().err
    assert apart(weights(once).values(), weights(plain).values()) < SAME

    # The text encoder makes room for the student until all is over.
    assert (teacher.text_encoding.placement, once.text_encoding.placement) == ("offload", "offload")
    distiller.close()
    assert teacher.text_encoding.placement == "resident"

    # A run that goes on has nothing to encode.
    texts.clear(), pictures.clear()
    shutil.rmtree(tmp_path / "once" / "checkpoint")
    Distiller(teacher, source_of(folder), replace(SETTINGS, updates=1), tmp_path / "once").train()
    assert (texts, pictures) == ([], [])


def test_processes_share_the_work_and_other_data_is_encoded_anew(folder, teacher, tmp_path):
    texts = counted(teacher, "text_encoder")
    out = tmp_path / "encoded"
    encoded = EncodedSource(source_of(folder), out, range(3))
    encode_once(teacher, encoded, ["teacher"], rank=0, processes=2)
    assert len(list(out.rglob("*.safetensors"))) == 3
    encode_once(teacher, encoded, ["teacher"], rank=1, processes=2)
    assert len(list(out.rglob("*.safetensors"))) == 6
    assert len(texts) == 3
    examples = encoded[0]
    assert examples.pictures == []
    assert {len(tensor) for tensor in examples.encoded.pictures.values()} == {2}
    (folder / "0.txt").write_text("a blue star grows left")
    encode_once(teacher, EncodedSource(source_of(folder), out, range(3)), ["teacher"])
    assert len(texts) == 7


def test_what_was_made_for_another_teacher_is_not_used_and_a_damaged_file_is_named(folder, teacher, tmp_path):
    texts = counted(teacher, "text_encoder")
    for about in ("one", "another"):
        encoded = EncodedSource(source_of(folder), tmp_path / "encoded", range(2))
        encode_once(teacher, encoded, [about])
    assert len(texts) == 6
    encoded.picture(1).write_bytes(b"damaged")
    with pytest.raises(StillmotionError, match=r"pictures/1-0\.safetensors: cannot be read"):
        [encoded[number] for number in range(2)]


def test_generated_clips_are_encoded_when_they_come(teacher, tmp_path):
    Distiller(teacher, GeneratedSource(32, 9, 2, seed=1), replace(SETTINGS, updates=1), tmp_path).train()
    assert not (tmp_path / "encoded").exists()
    assert teacher.text_encoding.placement == "resident"


@pytest.fixture
def videos(tmp_path) -> Path:
    """Two videos of more frames than a clip has."""
    found = tmp_path / "videos"
    found.mkdir()
    for number in range(2):
        frames = (torch.rand(12, 32, 32, 3, generator=torch.Generator().manual_seed(number)) * 255).byte().numpy()
        (found / f"{number}.mp4").write_bytes(encode(frames, 8, "mp4"))
        (found / f"{number}.txt").write_text(CAPTIONS[number])
    return found


@pytest.mark.parametrize(("name", "trajectory"), [("wan-2.1", "forward"), ("wan-2.1-flf", "backward")])
def test_clips_of_videos_are_encoded_once_each_and_the_student_is_the_same(name, trajectory, videos, tmp_path, capsys):
    """Forward the autoencoder sees each clip, and its first frame alone; a checkpoint may be given the last frame."""
    teacher, settings = teacher_of(name, tmp_path), replace(SETTINGS, updates=4, trajectory=trajectory)

    def trained(encode_once: bool) -> tuple[dict[str, Tensor], int]:
        seen = counted(teacher, "vae")
        own = replace(settings, encode_once=encode_once)
        source = source_of(videos, clips_per_video=2)
        return weights(Distiller(teacher, source, own, tmp_path / f"{encode_once}").train()), sum(seen)

    (plain, each), (once, few) = trained(False), trained(True)
    assert few < each
    assert apart(once.values(), plain.values()) < SAME
    passes = 3 + 4 * (2 if trajectory == "forward" else 1)
    assert f"3 texts and 4 clips of videos are encoded once: {passes} passes" in capsys.readouterr().err


def test_of_many_pictures_those_are_encoded_that_a_run_comes_to(folder, teacher, tmp_path):
    Distiller(teacher, source_of(folder), replace(SETTINGS, updates=1), tmp_path / "out").train()
    made = tmp_path / "out" / "encoded" / "pictures"
    assert len(list(made.iterdir())) == 2


def test_clips_that_are_others_at_each_visit_are_encoded_when_they_come(videos, tmp_path, teacher):
    texts, pictures = counted(teacher, "text_encoder"), counted(teacher, "image_encoder")
    source = source_of(videos, clips_per_video=0)
    Distiller(teacher, source, replace(SETTINGS, updates=2), tmp_path / "out").train()
    assert (sum(texts), sum(pictures)) == (3, 4)
