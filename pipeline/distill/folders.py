"""Pictures or videos with captions, from a folder of one's own.

A folder is laid out as Hugging Face `datasets` has it: a `metadata.csv` or `metadata.jsonl`, at the top or in any
folder below, names each file (`file_name`, relative to the metadata) and its caption (`text`, `caption` or
`prompt`); files that it does not name are left out. Where there is no metadata, a text file beside each
picture or video holds its caption: `cat.mp4`, `cat.txt`.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..media import images
from .data import Examples, Source
from .videos import ClipShape, DataError, Video, unreadable

PICTURES = (".jpeg", ".jpg", ".png", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".webm")
CAPTIONS = ("text", "caption", "prompt")
MAX_CAPTION_CHARS = 1000

# Pictures of one's own may be larger than what a server takes from anybody.
_LIMITS = images.PictureLimits(max_bytes=2**28)


def open_folder(
    folder: Path | str,
    *,
    frames: int,
    height: int,
    width: int,
    batch: int,
    seed: int = 0,
    fps: int | None = None,
    clips_per_video: int = 0,
    check: bool = False,
) -> Source:
    """Return pictures or videos of a folder; nothing is written into it.

    Args:
        folder: laid out as the module says, with pictures or with videos; both together are refused.
        batch: examples a number; there may be fewer in the folder.
        seed: of the order, and of the places in the videos.
        fps: see `ClipShape`.
        clips_per_video: see `CaptionedSource`.
        check: look at the header of each picture and walk through the packets of each video now, without
            decoding them; otherwise a damaged file is found when its turn comes.

    Raises:
        DataError: nothing there, a file is missing or outside the folder, or a caption is not usable.
    """
    folder = Path(folder)
    listed = list(_listed(folder))
    kinds = {is_video: path for path, _ in listed if (is_video := _is_video(path)) is not None}
    if len(kinds) == 2:
        raise DataError(
            f"{folder}: holds pictures and videos ({kinds[False].name}, {kinds[True].name}); give each a folder of "
            "its own"
        )
    shape, videos = ClipShape(frames, height, width, fps), True in kinds
    source = CaptionedSource(
        listed, str(folder), shape, batch, seed, has_clips=videos, clips_per_video=clips_per_video if videos else 1
    )
    if check:
        source.check()
    return source


class CaptionedSource(Dataset[Examples]):
    """Examples from files with captions, each once in an epoch, in an order of its own for each epoch.

    Args:
        rows: file and caption of each example; the files are all pictures, or all videos.
        name: of the whole; a training run goes on with data of the same name alone.
        shape: of the clips and pictures that the source gives.
        batch: examples a number; a batch may begin in one epoch and end in the next.
        seed: of the order, and of the places in the videos.
        has_clips: whether the files are videos.
        clips_per_video: how many different clips a video gives, one at each visit in turn; 0: another at each visit.
            A picture is one.
    """

    def __init__(
        self,
        rows: Sequence[tuple[Path, str]],
        name: str,
        shape: ClipShape,
        batch: int,
        seed: int = 0,
        *,
        has_clips: bool,
        clips_per_video: int = 1,
    ) -> None:
        self.rows, self.name, self.shape, self.batch, self.seed = rows, name, shape, batch, seed
        self.has_clips, self.clips_per_video = has_clips, clips_per_video

    def __getitem__(self, index: int) -> Examples:
        """Return the examples of number `index`, the same each time.

        Pictures are cut to the height and width; clips are `(batch, 3, frames, height, width)` in [0, 1].

        Raises:
            DataError: a picture or video is damaged, or has too few frames.
        """
        pictures, captions, clips = [], [], []
        for row, take in self.visits(index):
            captions.append(self.rows[row][1])
            seen = self.pictures(row, take)
            pictures.append(seen[0])
            if self.has_clips:
                clips.append(to_clip(seen))
        return Examples(pictures, captions, torch.stack(clips) if clips else None)

    def visits(self, index: int) -> list[tuple[int, int]]:
        """Return for each example of number `index` its row, and which of the row's clips it is."""
        found = []
        for number in range(index * self.batch, (index + 1) * self.batch):
            epoch, place = divmod(number, len(self.rows))
            row = int(_order(self.seed, epoch, len(self.rows))[place])
            found.append((row, epoch % self.clips_per_video if self.clips_per_video else epoch))
        return found

    def check(self) -> None:
        """Look at each file, without decoding it.

        Raises:
            DataError: the first that cannot be used.
        """
        for path, _ in self.rows:
            if self.has_clips:
                with Video(path) as video:
                    video.choices(self.shape)
            else:
                try:
                    images.check_header(path, _LIMITS)
                except (InputError, OSError) as error:
                    raise unreadable(str(path), error) from error

    def pictures(self, row: int, take: int = 0) -> list[Image]:
        """Return the picture of a row, or the frames of one of a video's clips, cut to the height and width.

        Raises:
            DataError: it is damaged, or has too few frames.
        """
        path, _ = self.rows[row]
        if self.has_clips:
            return self._clip(row, take)
        try:
            picture = images.decode(path, _LIMITS)
        except (InputError, OSError) as error:
            raise unreadable(str(path), error) from error
        return [images.centre_crop(picture, self.shape.width, self.shape.height)]

    def _clip(self, row: int, take: int) -> list[Image]:
        """Return a clip from a place in the video that `take` decides."""
        with Video(self.rows[row][0]) as video:
            choices = video.choices(self.shape)
            # A stream of random numbers apart from those of the order.
            drawn = np.random.default_rng([self.seed % 2**63, 1, row, take]).integers(len(choices))
            return [
                images.centre_crop(picture, self.shape.width, self.shape.height)
                for picture in video.pictures(choices[int(drawn)])
            ]


@functools.lru_cache(maxsize=2)  # a batch may lie in two epochs
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Which row comes when in an epoch."""
    return np.random.default_rng([seed % 2**63, 0, epoch]).permutation(count)


def to_clip(pictures: list[Image]) -> Tensor:
    """Return `(3, frames, height, width)`, float in [0, 1]."""
    values = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))  # (frames, height, width, 3)
    return values.permute(3, 0, 1, 2).float() / 255


# ---------------------------------------------------------------------- what a folder lists


def _listed(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield files and their captions, in an order that is the same on each machine."""
    if not folder.is_dir():
        raise DataError(f"{folder}: {'is no folder' if folder.exists() else 'there is no such folder'}")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    metadata = [path for path in files if path.name in ("metadata.csv", "metadata.jsonl")]
    for one, other in pairwise(metadata):
        if one.parent == other.parent:
            raise DataError(f"{other}: there is {one.name} beside it; keep one of them")
    media = [path for path in files if _is_video(path) is not None]
    rows = (row for path in metadata for row in _rows(path)) if metadata else map(_beside, media)
    empty = True
    for path, caption in rows:
        empty = False
        yield path, caption
    if empty and metadata:
        raise DataError(f"{metadata[0]}: lists no file")
    if empty:
        raise DataError(f"{folder}: has no pictures ({', '.join(PICTURES)}) and no videos ({', '.join(VIDEOS)}) in it")


def _is_video(path: Path) -> bool | None:
    """Return whether it is a video; None where it is neither a picture nor a video."""
    suffix = path.suffix.lower()
    return suffix in VIDEOS if suffix in PICTURES + VIDEOS else None


def _beside(path: Path) -> tuple[Path, str]:
    """Return a picture or video, and the text in the file beside it."""
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        raise DataError(f"{path}: has no caption; write it to {beside.name}, or list all files in a metadata.csv")
    return _checked_name(path, str(path)), _checked_caption(_text(beside, 16 * MAX_CAPTION_CHARS), str(beside))


def _rows(metadata: Path) -> Iterator[tuple[Path, str]]:
    read = _csv_rows if metadata.suffix == ".csv" else _json_rows
    for line, row in read(metadata):
        where = f"{metadata}, line {line}"
        name = row.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{where}: has no file_name; the columns are file_name and {' or '.join(CAPTIONS)}")
        inside = Path(os.path.normpath(name))
        if inside.is_absolute() or inside.parts[:1] == (os.pardir,):
            raise DataError(f"{where}: {name} is outside the folder of the metadata")
        path = metadata.parent / inside
        if not path.is_file():
            raise DataError(f"{where}: {name} is not there")
        if _is_video(path) is None:
            raise DataError(
                f"{where}: {name} is neither a picture ({', '.join(PICTURES)}) nor a video ({', '.join(VIDEOS)})"
            )
        caption = next((row[column] for column in CAPTIONS if column in row), None)
        yield _checked_name(path, where), _checked_caption(caption, f"{where}: {name}")


def _csv_rows(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_text(metadata), newline=""), strict=True)
    try:
        for row in reader:
            if None in row:
                raise DataError(
                    f"{metadata}, line {reader.line_num}: has more fields than columns; put a caption with commas in "
                    'double quotes: "a cat, asleep"'
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{metadata}, line {reader.reader.line_num}: is not CSV ({error})") from error


def _json_rows(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(metadata).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{metadata}, line {number}: is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f'{metadata}, line {number}: is not an object such as {{"file_name": ..., "text": ...}}')
        yield number, row


def _text(path: Path, limit: int = -1) -> str:
    """Return at most `limit` characters of a text file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read(limit)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise unreadable(str(path), error) from error


def _checked_caption(caption: object, where: str) -> str:
    if caption is None:
        raise DataError(f"{where}: has no caption; give one as {' or '.join(CAPTIONS)}")
    if not isinstance(caption, str):
        raise DataError(f"{where}: the caption is no text but {type(caption).__name__} ({caption!r:.40})")
    caption = caption.strip()
    if not caption:
        raise DataError(f"{where}: the caption is empty")
    if len(caption) > MAX_CAPTION_CHARS:
        raise DataError(f"{where}: the caption is longer than {MAX_CAPTION_CHARS} characters")
    if not _is_unicode(caption):
        raise DataError(f"{where}: the caption holds half a character (a lone surrogate)")
    return caption


def _checked_name(path: Path, where: str) -> Path:
    if not _is_unicode(str(path)):
        raise DataError(f"{where!a}: the file's name is not UTF-8; rename it")
    return path


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
