"""Datasets of the hub, from a cache on this disk, as folders are."""

from __future__ import annotations

import pytest

from pipeline.distill.folders import DataError, open_dataset

from .test_folders import FRAMES, SIZE, picture, video


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Writes a dataset with the pictures or videos inside, as the hub has them."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(media, texts, kind="image", text="text"):
        column = [{"path": path.name, "bytes": path.read_bytes()} for path in media]
        features = {
            kind: {"image": datasets.Image, "video": datasets.Video}[kind](decode=False),
            text: datasets.Value("string"),
        }
        rows = datasets.Dataset.from_dict({kind: column, text: texts}, features=datasets.Features(features))
        (tmp_path / "stored").mkdir()
        rows.to_parquet(tmp_path / "stored" / "train.parquet")
        return str(tmp_path / "stored")

    return write


def dataset(name, split="train"):
    return open_dataset(name, split, frames=FRAMES, height=SIZE, width=SIZE, batch=2)


def test_a_dataset_gives_its_pictures(tmp_path, stored):
    source = dataset(stored([picture(tmp_path / "a.png"), picture(tmp_path / "b.png")], ["a", "b"], text="prompt"))
    assert not source.has_clips
    assert sorted(source[0].captions) == ["a", "b"]


def test_a_dataset_gives_its_videos(tmp_path, stored):
    source = dataset(stored([video(tmp_path / "a.mp4")], ["a"], kind="video"))
    assert source.has_clips
    assert source[0].clips.shape == (2, 3, FRAMES, SIZE, SIZE)


def test_the_row_of_a_dataset_is_named(tmp_path, stored):
    paths = [picture(tmp_path / "a.png"), picture(tmp_path / "b.png")]
    name = stored(paths, ["a", ""])
    with pytest.raises(DataError, match="stored, row 1: the caption is empty"):
        dataset(name)


def test_a_damaged_row_of_a_dataset_is_named(tmp_path, stored):
    (tmp_path / "a.png").write_bytes(b"no picture")
    name = stored([tmp_path / "a.png"], ["a"])
    with pytest.raises(DataError, match="stored, row 0: not a readable picture"):
        dataset(name)[0]


def test_a_dataset_without_captions_names_its_columns(tmp_path, stored):
    name = stored([picture(tmp_path / "a.png")], ["a"], text="title")
    with pytest.raises(DataError, match=r"no column of captions.*text or caption or prompt; there are image, title"):
        dataset(name)


def test_a_dataset_that_cannot_be_had_is_named_in_one_line(tmp_path, stored):
    with pytest.raises(DataError, match=r"^nobody/nothing: split 'train' cannot be loaded .*give its folder$"):
        dataset("nobody/nothing")
    with pytest.raises(DataError, match=r"split 'test' cannot be loaded"):
        dataset(stored([picture(tmp_path / "a.png")], ["a"]), split="test")
