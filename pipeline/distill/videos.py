"""Frames of videos, by PyAV: where they are is read without decoding, and only what is asked for is decoded."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import av
from PIL.Image import Image

from ..errors import InputError, StillmotionError

# Of a second: times of frames are whole numbers of a time base, and often rounded.
_TOLERANCE_S = 1e-3


class DataError(StillmotionError):
    """Examples that cannot be used; the text begins with the file."""


@dataclass(frozen=True)
class ClipShape:
    """What becomes of a video or a picture.

    Attributes:
        frames: of a clip.
        height, width: in pixels, of the centre that is cut out.
        fps: at which frames are taken; None takes consecutive ones, whatever their rate.
    """

    frames: int
    height: int
    width: int
    fps: int | None = None


def unreadable(where: str, error: Exception) -> DataError:
    """Return what to say of a file that the system or a decoder will not read."""
    if isinstance(error, InputError):
        return DataError(f"{where}: {error.message}")
    return DataError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error})")


class Video:
    """An open video: where its frames are, and those that are asked for.

    Raises:
        DataError: not a video, or one that was cut short; from each method.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            self.container = av.open(str(path), "r")
        except (av.FFmpegError, OSError) as error:
            raise self._damaged(error) from error
        if not self.container.streams.video:
            self.container.close()
            raise DataError(f"{path}: holds no video")
        self.stream = self.container.streams.video[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def choices(self, shape: ClipShape) -> list[list[int]]:
        """Return each clip that can be taken, as the times of its frames in the stream's unit."""
        times = self._times
        if shape.fps is None:
            places = [list(range(k, k + shape.frames)) for k in range(len(times) - shape.frames + 1)]
            wanted = f"{shape.frames}"
        else:
            places = self._places_at(shape.frames, shape.fps)
            wanted = f"{shape.frames} at {shape.fps} frames a second"
        if not places:
            rate = self.stream.average_rate
            rated = f" at {float(rate):g} frames a second" if rate and shape.fps is not None else ""
            raise DataError(f"{self.where}: has {len(times)} frames{rated}, and a clip takes {wanted}")
        return [[times[k] for k in place] for place in places]

    def _places_at(self, frames: int, fps: int) -> list[list[int]]:
        """Return the same as numbers of frames: at each time the one that a player shows."""
        base = float(self.stream.time_base or 1)
        seconds = [(time - self._times[0]) * base for time in self._times]
        # The last frame is shown as long as the others are on average.
        ends = seconds[-1] + seconds[-1] / max(1, len(seconds) - 1)
        span = (frames - 1) / fps
        return [
            [bisect_right(seconds, start + k / fps + _TOLERANCE_S) - 1 for k in range(frames)]
            for start in seconds
            if start + span < ends - _TOLERANCE_S or frames == 1
        ]

    @functools.cached_property
    def _packets(self) -> list[tuple[int, int, bool]]:
        """When it is shown, when it is decoded, and whether decoding can begin there; nothing is decoded."""
        try:
            packets = [packet for packet in self.container.demux(self.stream) if packet.size]
        except (av.FFmpegError, OSError) as error:
            raise self._damaged(error) from error
        if any(packet.is_corrupt for packet in packets):
            raise DataError(f"{self.where}: the video is damaged or cut short")
        found = []
        for packet in packets:
            shown = packet.dts if packet.pts is None else packet.pts
            if shown is not None and not packet.is_discard:
                found.append((shown, shown if packet.dts is None else packet.dts, bool(packet.is_keyframe)))
        if not found:
            raise DataError(f"{self.where}: the video has no frames")
        return found

    @functools.cached_property
    def _times(self) -> list[int]:
        return sorted({shown for shown, _, _ in self._packets})

    def pictures(self, times: list[int]) -> list[Image]:
        """Return the frames that a player shows at these times, which ascend; RGB, upright."""
        before = [decoded for shown, decoded, is_key in self._packets if is_key and shown <= times[0]]
        try:
            self.container.seek(max(before, default=self._packets[0][1]), stream=self.stream)
            found = list(_shown(self.container.decode(self.stream), times))
        except (av.FFmpegError, OSError) as error:
            raise self._damaged(error) from error
        if len(found) < len(times):
            raise DataError(f"{self.where}: the video is damaged; {len(found)} of {len(times)} frames can be decoded")
        return found

    def _damaged(self, error: Exception) -> DataError:
        if isinstance(error, av.FFmpegError) and not isinstance(error, OSError):
            return DataError(f"{self.where}: not a readable video, or damaged ({error.strerror})")
        return unreadable(self.where, error)


def _shown(frames: Iterable[av.VideoFrame], times: list[int]) -> Iterator[Image]:
    """Yield for each time the last frame that begins no later; this ends early where the frames do."""
    given, shown = 0, None
    for frame in frames:
        if frame.pts is None:
            continue
        while given < len(times) and times[given] < frame.pts:
            yield _upright(shown or frame)
            given += 1
        shown = frame
        if frame.pts >= times[-1]:
            yield from [_upright(frame)] * (len(times) - given)
            return


def _upright(frame: av.VideoFrame) -> Image:
    """Telephones store how they were held instead of turning the pixels."""
    picture: Image = frame.to_image()  # type: ignore[no-untyped-call]
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
