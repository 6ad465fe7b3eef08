"""Clips as files: MP4, WebM, WebP, GIF, and contact sheets for a page."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from .formats import FORMATS, Format

Clip = NDArray[np.uint8]
"""`(frames, height, width, 3)`, sRGB."""

_LEAST_SIDE = 256
"""A clip smaller than this is scaled up by a whole number: players show it at a size one can watch, and the halved
colour resolution of video (4:2:0) then loses nothing of the model's pixels."""


def encode(clip: Clip, fps: int, file_format: Format) -> bytes:
    """Encode a clip.

    Args:
        clip: `(frames, height, width, 3)`, uint8.
        fps: frames per second, 1 to 60.

    Returns:
        The file's bytes. MP4 holds H.264, WebM VP9, both in BT.709; WebP and GIF are animated and loop. A GIF
        of more than 50 frames per second leaves some out, so that it takes as long as the clip.

    Raises:
        ValueError: an unknown format, or not a clip.
    """
    if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8:
        raise ValueError(f"clip: {clip.dtype} of shape {clip.shape} is not (frames, height, width, 3) of uint8")
    if not 1 <= fps <= 60:
        raise ValueError(f"fps: {fps} is outside 1 to 60")
    clip = enlarge(clip)
    if file_format in ("mp4", "webm"):
        return _encode_video(clip, fps, file_format)
    if file_format in ("webp", "gif"):
        return _encode_pictures(clip, fps, file_format)
    raise ValueError(f"format: {file_format!r} is not one of {', '.join(FORMATS)}")


def enlarge(clip: Clip) -> Clip:
    """Scale by the least whole number that brings the shorter side to `_LEAST_SIDE` pixels."""
    height, width = clip.shape[1:3]
    factor = -(-_LEAST_SIDE // min(height, width))
    if factor <= 1:
        return clip
    size = width * factor, height * factor
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Resampling.BICUBIC)) for f in clip])


def _encode_video(clip: Clip, fps: int, file_format: Format) -> bytes:
    # 4:2:0 wants even sides.
    height, width = clip.shape[1] // 2 * 2, clip.shape[2] // 2 * 2
    codec, options, container_options = {
        # faststart: the index comes first, so that a player can begin before the end has arrived.
        "mp4": ("libx264", {"crf": "16", "preset": "veryfast"}, {"movflags": "+faststart"}),
        "webm": ("libvpx-vp9", {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "6"}, {}),
    }[file_format]
    # A real file: to move the index to the front, FFmpeg opens what it has written a second time by name.
    with tempfile.TemporaryDirectory(prefix="clip-") as folder:
        path = Path(folder) / f"clip.{file_format}"
        _write_video(clip[:, :height, :width], fps, path, codec, options, container_options)
        return path.read_bytes()


def _write_video(
    clip: Clip, fps: int, path: Path, codec: str, options: dict[str, str], container_options: dict[str, str]
) -> None:
    with av.open(str(path), mode="w", options=container_options) as container:
        stream = cast(av.VideoStream, container.add_stream(codec, rate=fps, options=options))
        stream.width, stream.height, stream.pix_fmt = clip.shape[2], clip.shape[1], "yuv420p"
        # BT.709 and tagged as such: players take small videos without tags for BT.601 or for BT.709, as they like.
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_primaries = ColorPrimaries.BT709
        stream.codec_context.color_trc = ColorTrc.BT709
        stream.codec_context.color_range = ColorRange.MPEG
        for picture in clip:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = rgb.reformat(
                format="yuv420p",
                src_color_range=ColorRange.JPEG,
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                dst_color_primaries=ColorPrimaries.BT709,
                dst_color_trc=ColorTrc.BT709,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _encode_pictures(clip: Clip, fps: int, file_format: Format) -> bytes:
    # GIF counts in hundredths of a second, and players show a delay of one of them as a tenth.
    unit_ms, least_ms = (1, 1) if file_format == "webp" else (10, 20)
    shown = delays_ms(len(clip), fps, unit_ms, least_ms)
    pictures = [Image.fromarray(clip[k]) for k in shown]
    durations = list(shown.values())
    buffer = io.BytesIO()
    options = {"quality": 90, "method": 2} if file_format == "webp" else {"optimize": False}
    pictures[0].save(
        buffer,
        format=file_format.upper(),
        save_all=True,
        append_images=pictures[1:],
        duration=durations if len(durations) > 1 else durations[0],
        loop=0,
        **options,
    )
    return buffer.getvalue()


def delays_ms(frames: int, fps: int, unit_ms: int, least_ms: int) -> dict[int, int]:
    """Return how long each frame is shown, by its number, in a file that counts in units of time.

    Delays are multiples of `unit_ms` and add up to the clip's length, to half a unit. A frame that would be shown for
    less than `least_ms` is left out.
    """
    starts = [round(k * 1000 / (fps * unit_ms)) * unit_ms for k in range(frames + 1)]
    end = max(starts[-1], least_ms)
    shown = [0]
    for k in range(1, frames):
        if starts[k] - starts[shown[-1]] >= least_ms and end - starts[k] >= least_ms:
            shown.append(k)
    ends = [*(starts[k] for k in shown[1:]), end]
    return {k: until - starts[k] for k, until in zip(shown, ends, strict=True)}


def decode(data: bytes) -> Clip:
    """Return frames of an encoded clip, as a player would show them."""
    if data[:4] == b"RIFF" or data[:3] == b"GIF":
        with Image.open(io.BytesIO(data)) as picture:
            frames = []
            for k in range(getattr(picture, "n_frames", 1)):
                picture.seek(k)
                frames.append(np.asarray(picture.convert("RGB")))
        return np.stack(frames)
    with av.open(io.BytesIO(data), "r") as container:
        return np.stack([np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)])


def sheet(clips: Sequence[Clip], frame_height: int = 96, gap: int = 2) -> Image.Image:
    """Return a contact sheet with one row of frames for each clip, at a size that fits a page.

    Args:
        clips: `(frames, height, width, 3)` each, uint8, all of one shape.
        frame_height, gap: height of a frame and white around it, in pixels.
    """
    rows = []
    for clip in clips:
        padded = np.pad(_scaled(clip, frame_height), ((0, 0), (gap, gap), (gap, gap), (0, 0)), constant_values=255)
        rows.append(np.concatenate(list(padded), axis=1))
    return Image.fromarray(np.concatenate(rows, axis=0))


def _scaled(clip: Clip, frame_height: int) -> Clip:
    height, width = clip.shape[1:3]
    size = round(width * frame_height / height), frame_height
    kind = Resampling.BOX if frame_height < height else Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, kind)) for frame in clip])
