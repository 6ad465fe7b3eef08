"""Folders of pictures and videos that cannot be used: what is wrong is named, with the file."""

from __future__ import annotations

import os
import re

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.distill.folders import DataError

from .test_folders import FRAMES, lines, opened, picture, refused, video


def test_a_folder_without_examples_is_named(tmp_path):
    refused(tmp_path / "missing", tmp_path / "missing", "no such folder")
    refused(tmp_path, tmp_path, "has no pictures", ".mp4")
    (tmp_path / "notes.txt").write_text("nothing to see")
    refused(tmp_path, tmp_path, "has no pictures")
    refused(tmp_path / "notes.txt", "notes.txt", "is no folder")
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    refused(tmp_path, "metadata.csv", "lists no file")


def test_two_kinds_of_metadata_in_one_folder_are_refused(tmp_path):
    picture(tmp_path / "a.png")
    lines(tmp_path, {"file_name": "a.png", "text": "a"})
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,b\n")
    refused(tmp_path, "metadata.jsonl: there is metadata.csv beside it")


def test_pictures_and_videos_do_not_mix(tmp_path):
    picture(tmp_path / "a.png")
    video(tmp_path / "b.mp4")
    lines(tmp_path, {"file_name": "a.png", "text": "a"}, {"file_name": "b.mp4", "text": "b"})
    refused(tmp_path, tmp_path, "a.png", "b.mp4", "folder of its own")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"file_name": "a.png"}, ["line 2", "a.png", "no caption"]),
        ({"file_name": "a.png", "text": None}, ["line 2", "no caption"]),
        ({"file_name": "a.png", "text": " \n"}, ["line 2", "the caption is empty"]),
        ({"file_name": "a.png", "text": 7}, ["line 2", "no text but int"]),
        ({"file_name": "a.png", "text": ["a"]}, ["line 2", "no text but list"]),
        ({"file_name": "a.png", "text": "x" * 1001}, ["line 2", "longer than 1000"]),
        ({"file_name": "a.png", "text": "\ud800"}, ["line 2", "half a character"]),
        ({"text": "a"}, ["line 2", "no file_name"]),
        ({"file_name": "", "text": "a"}, ["line 2", "no file_name"]),
        ({"file_name": 3, "text": "a"}, ["line 2", "no file_name"]),
        ({"file_name": "b.png", "text": "a"}, ["line 2", "b.png is not there"]),
        ({"file_name": "a\0.png", "text": "a"}, ["line 2", "is not there"]),
        ({"file_name": ".", "text": "a"}, ["line 2", "is not there"]),
        ({"file_name": "../a.png", "text": "a"}, ["line 2", "../a.png is outside"]),
        ({"file_name": "x/../../a.png", "text": "a"}, ["line 2", "is outside"]),
        ({"file_name": "/etc/passwd", "text": "a"}, ["line 2", "/etc/passwd is outside"]),
        ({"file_name": "notes.md", "text": "a"}, ["line 2", "notes.md is neither a picture"]),
        (["a.png", "a"], ["line 2", "is not an object"]),
    ],
    ids=str,
)
def test_a_bad_row_of_json_lines_is_named(tmp_path, row, words):
    picture(tmp_path.parent / "a.png")
    picture(tmp_path / "a.png")
    (tmp_path / "notes.md").write_text("notes")
    lines(tmp_path, {"file_name": "a.png", "text": "a"}, row)
    refused(tmp_path, tmp_path / "metadata.jsonl", *words)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metadata.jsonl", b'{"file_name": "a.png", "text": "a"}\n{"file', ["line 2", "is not JSON"]),
        ("metadata.jsonl", b"[" * 100_000, ["line 1", "is not JSON"]),
        ("metadata.jsonl", b'{"text": "\xff"}', ["is not text in UTF-8"]),
        ("metadata.csv", b'file_name,text\na.png,"open', ["line 2", "is not CSV"]),
        ("metadata.csv", b"file_name,text\na.png,a cat, asleep\n", ["line 2", "more fields", "double quotes"]),
        ("metadata.csv", b"file_name,text\na.png\n", ["line 2", "no caption"]),
        ("metadata.csv", b"file_name,text\na.png,\n", ["line 2", "the caption is empty"]),
        ("metadata.csv", b"name,text\na.png,a\n", ["line 2", "no file_name"]),
        ("metadata.csv", b"", ["lists no file"]),
    ],
)
def test_damaged_metadata_is_named(tmp_path, name, text, words):
    picture(tmp_path / "a.png")
    (tmp_path / name).write_bytes(text)
    refused(tmp_path, tmp_path / name, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["a.png", "has no caption; write it to a.txt"]),
        (b"", ["a.txt", "the caption is empty"]),
        (b"x" * 1001, ["a.txt", "longer than 1000"]),
        (b"\x89PNG\xff", ["a.txt", "is not text in UTF-8"]),
    ],
)
def test_a_bad_caption_file_is_named(tmp_path, text, words):
    picture(tmp_path / "a.png")
    if text is not None:
        (tmp_path / "a.txt").write_bytes(text)
    refused(tmp_path, *words)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    raw = os.fsencode(tmp_path) + b"/a\xff.png"
    try:
        os.link(picture(tmp_path / "b.png"), raw)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (tmp_path / "b.txt").write_text("b")
    with open(os.fsencode(tmp_path) + b"/a\xff.txt", "w", encoding="utf-8") as file:  # noqa: PTH123  # of bytes
        file.write("a")
    refused(tmp_path, "not UTF-8", r"a\udcff.png")


def broken(path):
    """Ways in which a file can be damaged, by name."""
    whole = path.read_bytes()
    return {"empty": b"", "other": b"not what the name says" * 20, "cut": whole[: len(whole) // 2]}


@pytest.mark.parametrize("damage", ["empty", "other", "cut"])
def test_a_damaged_picture_is_named_when_it_is_read(tmp_path, damage):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(broken(path)[damage])
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: "):
        opened(tmp_path)[0]
    if damage != "cut":  # a header alone does not show that
        refused(tmp_path, path, check=True)


@pytest.mark.parametrize("damage", ["empty", "other", "cut"])
def test_a_damaged_video_is_named_when_it_is_read_or_checked(tmp_path, damage):
    path = video(tmp_path / "a.mp4")
    path.write_bytes(broken(path)[damage])
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*(video|damaged|read)"):
        opened(tmp_path)[0]
    refused(tmp_path, path, check=True)


def test_a_video_damaged_inside_is_named(tmp_path):
    path = video(tmp_path / "a.mp4", frames=FRAMES)
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*damaged"):
        opened(tmp_path)[0]


def test_a_file_that_is_gone_is_named(tmp_path):
    path = picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    source = opened(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.png: cannot be read \(No such file"):
        source[0]


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "a.txt").write_text("a")
    refused(tmp_path, "a.mp4", "holds no video", check=True)


def test_a_video_that_is_too_short_is_named(tmp_path):
    video(tmp_path / "a.mp4", frames=FRAMES - 1)
    (tmp_path / "a.txt").write_text("a")
    refused(tmp_path, "a.mp4", "has 3 frames", "a clip takes 4", check=True)
    refused(tmp_path, "has 3 frames at 8 frames a second", "takes 4 at 4 frames", check=True, fps=4)
    with pytest.raises(DataError, match="has 3 frames"):
        opened(tmp_path)[0]
