from __future__ import annotations

import io
import warnings

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.judge.metrics import psnr_db
from pipeline.media.formats import FORMATS, MEDIA_TYPES
from pipeline.media.video import decode, delays_ms, encode, enlarge, sheet

# What each format keeps of a clip of slowly varying colours, in dB; GIF has 256 colours.
LEAST_PSNR_DB = {"mp4": 34, "webm": 32, "webp": 32, "gif": 26}


def moving_clip(frames=6, height=64, width=80):
    """A soft disc that crosses a gradient: `(frames, height, width, 3)`."""
    y, x = np.mgrid[0:height, 0:width]
    clip = []
    for t in np.linspace(0.2, 0.8, frames):
        disc = 1 / (1 + np.exp((np.hypot(x - t * width, y - height / 2) - height / 5) / 2))
        ground = np.stack([x / width, y / height, 0.5 + 0 * x], axis=-1)
        clip.append(ground * (1 - disc[..., None]) + np.array([0.9, 0.2, 0.1]) * disc[..., None])
    return (np.stack(clip) * 255).astype(np.uint8)


def psnr(one, other):
    return float(psnr_db(torch.tensor(one[None] / 255.0), torch.tensor(other[None] / 255.0)))


def shown_seconds(data, file_format):
    """How long a player shows the clip."""
    if file_format in ("webp", "gif"):
        with Image.open(io.BytesIO(data)) as picture:
            total = 0
            for k in range(picture.n_frames):
                picture.seek(k)
                picture.load()
                total += picture.info["duration"]
        return total / 1000
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        times = [float(frame.pts * frame.time_base) for frame in container.decode(stream)]
        rate = float(stream.average_rate)
    return times[-1] - times[0] + 1 / rate


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_every_frame_comes_back_in_the_size_it_is_shown_in(file_format, frames):
    clip = moving_clip(frames)
    decoded = decode(encode(clip, 8, file_format))
    assert decoded.shape == enlarge(clip).shape
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize("file_format", FORMATS)
def test_what_comes_back_is_what_went_in(file_format):
    clip = enlarge(moving_clip())
    assert psnr(decode(encode(clip, 8, file_format)), clip) >= LEAST_PSNR_DB[file_format]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("fps", [8, 30, 60])
def test_a_clip_is_shown_at_its_rate(file_format, fps):
    data = encode(moving_clip(12), fps, file_format)
    # Files of pictures count in hundredths or thousandths of a second: half a one may be lost at the end.
    assert shown_seconds(data, file_format) == pytest.approx(12 / fps, abs=0.005)


@given(st.integers(1, 200), st.integers(1, 60))
def test_delays_of_a_gif_add_up_and_are_none_that_players_stretch(frames, fps):
    delays = delays_ms(frames, fps, 10, 20)
    assert abs(sum(delays.values()) - max(20, 1000 * frames / fps)) <= 5
    assert all(delay >= 20 and delay % 10 == 0 for delay in delays.values())
    assert list(delays) == list(range(frames)) or fps > 50
    assert min(delays) == 0


@pytest.mark.parametrize("file_format", ["mp4", "webm"])
def test_video_gives_its_colours_back_to_who_reads_it_as_bt709(file_format):
    """The decoder's arithmetic is ITU-R BT.709's own, on the planes as FFmpeg hands them out."""
    for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 40, 60), (30, 160, 90), (255, 255, 255), (0, 0, 0)]:
        clip = np.full((2, 256, 256, 3), colour, dtype=np.uint8)
        with av.open(io.BytesIO(encode(clip, 8, file_format))) as container:
            frame = next(container.decode(video=0))
        y, u, v = (np.frombuffer(plane, np.uint8)[0] for plane in frame.planes)
        luma, blue, red = (float(y) - 16) / 219, (float(u) - 128) / 224, (float(v) - 128) / 224
        r, b = luma + 1.5748 * red, luma + 1.8556 * blue
        shown = np.array([r, (luma - 0.2126 * r - 0.0722 * b) / 0.7152, b]) * 255
        assert np.abs(shown.clip(0, 255) - colour).max() <= 3, shown


@pytest.mark.parametrize("file_format", ["mp4", "webm"])
def test_video_says_its_rate_codec_and_colours(file_format):
    with av.open(io.BytesIO(encode(moving_clip(), 12, file_format))) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 12
        assert stream.codec_context.name in {"h264", "vp9", "libvpx-vp9"}
        assert stream.codec_context.pix_fmt == "yuv420p"  # what every browser plays
        next(container.decode(stream))  # the bitstream says it, and not the container alone
        context = stream.codec_context
        said = context.colorspace, context.color_primaries, context.color_trc, context.color_range
        assert said == (1, 1, 1, 1)  # BT.709 three times, and the range of broadcasts


def test_mp4_begins_with_its_index_so_that_it_plays_while_it_loads():
    data = encode(moving_clip(), 8, "mp4")
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("file_format", ["webp", "gif"])
def test_pictures_loop_for_ever(file_format):
    with Image.open(io.BytesIO(encode(moving_clip(2), 8, file_format))) as picture:
        assert picture.info["loop"] == 0


@pytest.mark.parametrize("file_format", ["mp4", "webm", "gif"])
def test_a_clip_that_stands_still_is_shown_as_long_as_any(file_format):
    # (WebP writes equal frames as one picture, which stands still for ever.)
    still = np.repeat(moving_clip(1), 8, axis=0)
    data = encode(still, 8, file_format)
    assert shown_seconds(data, file_format) == pytest.approx(1.0, rel=0.06)
    assert psnr(decode(data)[0], enlarge(still)[0]) >= LEAST_PSNR_DB[file_format]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(("height", "width"), [(257, 301), (33, 65)])
def test_odd_sizes_lose_at_most_a_pixel(file_format, height, width):
    clip = moving_clip(2, height, width)
    decoded, shown = decode(encode(clip, 8, file_format)), enlarge(clip)
    assert all(0 <= b - a <= 1 for a, b in zip(decoded.shape[1:3], shown.shape[1:3], strict=True))


@pytest.mark.parametrize("file_format", FORMATS)
def test_each_format_has_a_media_type_and_the_right_first_bytes(file_format):
    data = encode(moving_clip(2), 8, file_format)
    marks = {"mp4": data[4:8] == b"ftyp", "webm": data[:4] == b"\x1aE\xdf\xa3", "webp": data[8:12] == b"WEBP",
             "gif": data[:6] == b"GIF89a"}  # fmt: skip
    assert marks[file_format]
    assert MEDIA_TYPES[file_format].endswith(file_format)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("clip", (np.zeros((2, 16, 16, 3), dtype=np.float32), 8, "mp4")),
        ("clip", (np.zeros((16, 16, 3), dtype=np.uint8), 8, "mp4")),
        ("clip", (np.zeros((2, 16, 16, 4), dtype=np.uint8), 8, "gif")),
        ("fps", (np.zeros((2, 16, 16, 3), dtype=np.uint8), 0, "mp4")),
        ("fps", (np.zeros((2, 16, 16, 3), dtype=np.uint8), 61, "webp")),
        ("format", (np.zeros((2, 16, 16, 3), dtype=np.uint8), 8, "avi")),
    ],
)
def test_what_cannot_be_encoded_is_refused_by_name(field, arguments):
    with pytest.raises(ValueError, match=rf"^{field}: "):
        encode(*arguments)


def test_small_clips_are_enlarged_by_whole_numbers_and_large_ones_left_alone():
    assert enlarge(moving_clip(2, 64, 96)).shape == (2, 256, 384, 3)
    assert enlarge(moving_clip(2, 100, 100)).shape == (2, 300, 300, 3)
    large = moving_clip(2, 256, 300)
    assert enlarge(large) is large


def test_a_contact_sheet_has_a_row_for_each_clip_and_a_column_for_each_frame():
    clips = [moving_clip(4, 16, 24), np.zeros((4, 16, 24, 3), dtype=np.uint8)]
    drawn = sheet(clips, frame_height=16, gap=2)
    assert drawn.size == (4 * (24 + 4), 2 * (16 + 4))
    pixels = np.asarray(drawn)
    assert np.array_equal(pixels[2:18, 28 + 2 : 28 + 26], clips[0][1])
    assert (pixels[0] == 255).all()


def test_encoding_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for file_format in FORMATS:
            encode(moving_clip(2), 8, file_format)
