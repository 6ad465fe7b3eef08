from __future__ import annotations

import hashlib
import json
import math
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from pipeline.distill.folders import CaptionedSource, ClipShape, DataError, open_folder
from pipeline.media.video import encode

FRAMES, SIZE = 4, 16
GREYS = 20  # between two frames of a video, so that a frame can be told by its brightness


def picture(path, shade=100, size=(24, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)
    return path


def video(path, frames=8, fps=8, first=20):
    """Frame k is of the grey `first + GREYS * k`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clip = np.stack([np.full((32, 32, 3), first + GREYS * k, np.uint8) for k in range(frames)])
    path.write_bytes(encode(clip, fps, path.suffix.removeprefix(".")))
    return path


def frame_numbers(clip, first=20):
    """Which frames of `video` a clip `(3, frames, height, width)` consists of."""
    return [round((float(frame.mean()) * 255 - first) / GREYS) for frame in clip.unbind(dim=1)]


def opened(folder, batch=2, **more):
    return open_folder(folder, frames=FRAMES, height=SIZE, width=SIZE, batch=batch, **more)


def refused(folder, *words, **more):
    with pytest.raises(DataError) as caught:
        opened(folder, **more)
    assert "\n" not in str(caught.value)
    for word in words:
        assert str(word) in str(caught.value)


def state(folder):
    """Every file and what is in it."""
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def lines(folder, *rows, name="metadata.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# ---------------------------------------------------------------------- layouts


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
@pytest.mark.parametrize("suffix", [".png", ".JPG", ".webp"])
def test_pictures_are_captioned_by_a_csv(tmp_path, column, suffix):
    picture(tmp_path / f"a{suffix}", 50)
    picture(tmp_path / f"deep/b-test{suffix}", 200)
    (tmp_path / "metadata.csv").write_text(
        f'file_name,{column}\na{suffix},"one, dark"\ndeep/b-test{suffix},NA\n', encoding="utf-8-sig"
    )
    source = opened(tmp_path, check=True)
    assert not source.has_clips
    examples = source[0]
    assert examples.clips is None
    assert sorted(examples.captions) == ["NA", "one, dark"]
    for seen, caption in zip(examples.pictures, examples.captions, strict=True):
        assert seen.size == (SIZE, SIZE)
        assert abs(seen.getpixel((8, 8))[0] - (200 if caption == "NA" else 50)) <= 2


def test_videos_are_captioned_by_json_lines_in_each_folder(tmp_path):
    for name in ("one", "two"):
        video(tmp_path / name / "clip.mp4")
        lines(tmp_path / name, {"file_name": "clip.mp4", "text": f"of {name}", "views": 3})
    source = opened(tmp_path, check=True)
    assert source.has_clips
    examples = source[0]
    assert sorted(examples.captions) == ["of one", "of two"]
    assert examples.clips.shape == (2, 3, FRAMES, SIZE, SIZE)
    assert examples.clips.dtype == torch.float32
    assert 0 <= examples.clips.min() < examples.clips.max() <= 1
    for seen, clip in zip(examples.pictures, examples.clips, strict=True):
        assert np.array_equal(np.asarray(seen), (clip[:, 0] * 255).round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_text_files_beside_videos_are_captions(tmp_path, suffix):
    video(tmp_path / f"cat{suffix}")
    (tmp_path / "cat.txt").write_text("a cat, asleep\n")
    (tmp_path / "README.txt").write_text("says nothing of any video")
    picture(tmp_path / ".thumbnails" / "cat.png")
    assert opened(tmp_path, check=True)[0].captions == ["a cat, asleep"] * 2


def test_files_that_metadata_does_not_name_are_left_out(tmp_path):
    picture(tmp_path / "a.png")
    video(tmp_path / "b.mp4")
    lines(tmp_path, {"file_name": "a.png", "text": "a"})
    assert opened(tmp_path)[0].captions == ["a", "a"]


def test_nothing_is_written_and_nothing_is_sent(tmp_path, monkeypatch):
    video(tmp_path / "data" / "a.mp4")
    (tmp_path / "data" / "a.txt").write_text("a")
    before = state(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    assert opened(tmp_path / "data", check=True)[3].captions == ["a", "a"]
    assert state(tmp_path) == before


# ---------------------------------------------------------------------- order


@given(count=st.integers(1, 40), batch=st.integers(1, 7), epochs=st.integers(1, 4), seed=st.integers(-(2**63), 2**64))
def test_each_epoch_shows_each_row_once(count, batch, epochs, seed):
    source = CaptionedSource([(Path(), "")] * count, "rows", ClipShape(1, 8, 8), batch, seed, has_clips=False)
    batches = math.ceil(epochs * count / batch)
    rows = [row for index in range(batches) for row, _ in source.visits(index)]
    for epoch in range(epochs):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ_in_their_order():
    def order(seed, epoch):
        source = CaptionedSource([(Path(), "")] * 30, "rows", ClipShape(1, 8, 8), 1, seed, has_clips=False)
        return tuple(source.visits(epoch * 30 + k)[0][0] for k in range(30))

    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


@pytest.fixture
def three_videos(tmp_path):
    for k in range(3):
        video(tmp_path / f"{k}.mp4", frames=10)
        (tmp_path / f"{k}.txt").write_text(f"video {k}")
    return tmp_path


def test_a_number_always_gives_the_same_examples(three_videos):
    one, other = opened(three_videos, seed=5), opened(three_videos, seed=5)
    other[7]
    for index in (2, 0, 1):
        assert one[index].captions == other[index].captions
        assert torch.equal(one[index].clips, other[index].clips)
    assert any(not torch.equal(one[k].clips, opened(three_videos, seed=6)[k].clips) for k in range(3))


def test_a_batch_goes_from_one_epoch_into_the_next_and_may_hold_several(three_videos):
    captions = [caption for k in range(3) for caption in opened(three_videos, batch=5)[k].captions]
    for epoch in range(5):
        assert sorted(captions[3 * epoch : 3 * epoch + 3]) == ["video 0", "video 1", "video 2"]


def test_workers_give_what_the_process_itself_gives(three_videos):
    source = opened(three_videos)
    copied = pickle.loads(pickle.dumps(source))  # noqa: S301  # as a worker that is spawned gets it
    assert torch.equal(copied[1].clips, source[1].clips)
    loader = DataLoader(source, sampler=[0, 1, 2], batch_size=None, num_workers=1)
    for index, examples in enumerate(loader):
        assert examples.captions == source[index].captions
        assert torch.equal(examples.clips, source[index].clips)


# ---------------------------------------------------------------------- frames


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_clips_are_consecutive_frames_from_every_place(tmp_path, suffix):
    video(tmp_path / f"a{suffix}", frames=8)
    (tmp_path / "a.txt").write_text("a")
    source = opened(tmp_path, batch=8)
    seen = {tuple(frame_numbers(clip)) for k in range(8) for clip in source[k].clips}
    assert seen == {tuple(range(k, k + FRAMES)) for k in range(8 - FRAMES + 1)}


def test_a_video_gives_as_many_different_clips_as_are_asked_for_in_turn(tmp_path):
    video(tmp_path / "a.mp4", frames=10)
    (tmp_path / "a.txt").write_text("a")
    source = opened(tmp_path, batch=1, clips_per_video=3)
    assert [source.visits(k) for k in range(4)] == [[(0, 0)], [(0, 1)], [(0, 2)], [(0, 0)]]
    first = [frame_numbers(source[k].clips[0]) for k in range(3)]
    assert [frame_numbers(source[k].clips[0]) for k in range(3, 6)] == first
    assert len({tuple(frames) for frames in first}) > 1


def test_frames_are_right_behind_the_first_keyframe(tmp_path):
    """x264 sets a keyframe every 250 frames at the latest; here every 5, with frames that refer to later ones."""
    path = tmp_path / "long.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"g": "5", "bf": "2", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for k in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 + 5 * k, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "long.txt").write_text("brighter")
    clips = torch.cat([opened(tmp_path, batch=8)[k].clips for k in range(4)])
    shades = (clips.mean(dim=(1, 3, 4)) * 255 - 20) / 5  # (clips, frames), number of the frame
    starts = shades[:, :1].round()
    assert len(starts.unique()) > 10
    assert torch.allclose(shades, starts + torch.arange(FRAMES), atol=0.4)


@pytest.mark.parametrize(
    ("fps", "starts", "steps"),
    [
        (8, 5, [0, 1, 2, 3]),
        (4, 2, [0, 2, 4, 6]),
        (3, 1, [0, 2, 5, 8]),  # at 0, 1/3, 2/3 and 1 second of 8 frames a second
        (16, 7, [0, 0, 1, 1]),
    ],
)
def test_frames_are_taken_at_the_target_rate(tmp_path, fps, starts, steps):
    frames = 9 if fps == 3 else 8
    video(tmp_path / "a.mp4", frames=frames, fps=8)
    (tmp_path / "a.txt").write_text("a")
    source = opened(tmp_path, batch=8, fps=fps)
    seen = {tuple(frame_numbers(clip)) for k in range(8) for clip in source[k].clips}
    assert seen == {tuple(start + step for step in steps) for start in range(starts)}


def test_a_video_held_upright_is_shown_upright(tmp_path):
    path = tmp_path / "telephone.mp4"
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:, 48:] = 255  # bright on the right as stored: on top once it is turned by a quarter to the left
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(90)
        for _ in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode(None))
    (tmp_path / "telephone.txt").write_text("a bright sky")
    source = open_folder(tmp_path, frames=FRAMES, height=64, width=32, batch=1)
    first = source[0].clips[0, :, 0]
    assert first[:, :12].mean() > 0.9
    assert first[:, 20:].mean() < 0.1


def test_the_centre_is_kept(tmp_path):
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    wide.save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text("wide")
    seen = np.asarray(opened(tmp_path, batch=1)[0].pictures[0])
    assert (seen == (0, 0, 255)).all()
