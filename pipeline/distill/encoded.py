"""Captions and pictures of a folder, encoded once before training, and read from files when their turn comes.

Each update would encode its captions and pictures anew, with encoders that are often larger than a student: T5-XXL has
5 billion weights, and an autoencoder of video encodes all frames of a clip for a picture. What they make of a caption
or a picture does not change while the student learns. Files lie in the run's folder, so that several processes share
the work and a run that goes on has nothing to encode; the system keeps in memory what fits there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import StillmotionError, first_line
from ..writing import write_atomically, write_beside
from .data import Encoded, Examples
from .folders import CaptionedSource

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline
    from ..model.families import Cond

_ABOUT = "about.json"

Together = Callable[[], None]
"""Waits until all processes have come as far."""


class EncodedSource(Dataset[Examples]):
    """Examples of a folder, with what the encoders made of them.

    Args:
        inner: the folder's own. Of pictures nothing is read any more but what was made of them; clips are.
        folder: of the files, `texts/NUMBER.safetensors` and `pictures/ROW.safetensors`.

    Attributes:
        captions: in the order of their files; the first is the negative prompt's place.
    """

    def __init__(self, inner: CaptionedSource, folder: Path) -> None:
        self.inner, self.folder, self.has_clips = inner, folder, inner.has_clips
        self.captions = ["", *sorted({caption for _, caption in inner.rows})]
        self._places = {caption: number for number, caption in enumerate(self.captions)}

    def text(self, number: int) -> Path:
        return self.folder / "texts" / f"{number}.safetensors"

    def picture(self, row: int) -> Path:
        return self.folder / "pictures" / f"{row}.safetensors"

    def saving(self, clips: int, texts_each: int) -> str:
        """Return in words how many passes of the encoders are saved.

        Args:
            clips: that a training sees, one after the other.
            texts_each: texts that each is guided by: its caption, and the negative prompt where there is guidance.
        """
        texts, pictures = len(self.captions), 0 if self.has_clips else len(self.inner.rows)
        return (
            f"{texts} texts and {pictures} pictures are encoded once: {texts + pictures} passes of the encoders, "
            f"where {clips} clips would take {clips * (texts_each + bool(pictures))}"
        )

    def __getitem__(self, index: int) -> Examples:
        """Return the examples of a number; without pictures, where these are encoded.

        Raises:
            StillmotionError: a file is damaged or missing.
        """
        inner = self.inner
        rows = [inner.row(number) for number in range(index * inner.batch, (index + 1) * inner.batch)]
        captions = [inner.rows[row][1] for row in rows]
        examples = inner[index] if self.has_clips else Examples([], captions)
        texts = _read([self.text(self._places[caption]) for caption in captions])
        negative = _read([self.text(0)] * len(rows))
        pictures = None if self.has_clips else _read([self.picture(row) for row in rows])
        return Examples(examples.pictures, captions, examples.clips, Encoded(texts, negative, pictures))


@torch.no_grad()
def encode_once(
    teacher: ImageAnimationPipeline,
    source: CaptionedSource,
    folder: Path,
    about: Sequence[object],
    *,
    rank: int = 0,
    processes: int = 1,
    together: Together = lambda: None,
    on_progress: Callable[[int, int], None] | None = None,
) -> EncodedSource:
    """Encode each caption once and, where the folder holds pictures, each picture once.

    Where the picture that a clip begins with is drawn anew at each visit, as of videos, it is not encoded here. A
    family whose autoencoder draws from its posterior draws once a picture.

    Args:
        folder: made for the files; those that are there already are kept, where they were made of the same.
        about: what they depend on beside the data: the teacher and the shape of a clip, for example.
        rank, processes: which process this is of how many that share the folder; each encodes its part.
        together: called by each when they have to wait for each other.
        on_progress: called with (files done, files in all) by the first process.

    Raises:
        StillmotionError: a picture cannot be read, or a file cannot be written.
    """
    encoded, digest = EncodedSource(source, folder), _digest(source, about)
    if rank == 0 and _read_about(folder) != digest:
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("texts", "pictures"):
            (folder / name).mkdir(parents=True)
        write_atomically(folder / _ABOUT, json.dumps(digest) + "\n")
    together()
    captions = encoded.captions
    tasks = [("text", number) for number in range(len(captions))]
    tasks += [] if source.has_clips else [("picture", row) for row in range(len(source.rows))]
    mine = tasks[rank::processes]
    for done, (kind, number) in enumerate(mine, start=1):
        path = encoded.text(number) if kind == "text" else encoded.picture(number)
        if not path.is_file():
            if kind == "picture":
                made = _encode_picture(teacher, source, number)
            else:
                made = encode_text(teacher, captions[number] if number else None)
            _write(path, made)
        if on_progress is not None and rank == 0:
            on_progress(done, len(mine))
    together()
    return encoded


def encode_text(teacher: ImageAnimationPipeline, caption: str | None) -> Cond:
    """Return what the network is given of a caption, or of the negative prompt where it is None, as a batch of one."""
    family = teacher.family
    if caption is not None:
        return family.encode_text(teacher.parts, [caption], teacher.default_clip_skip)
    skip = teacher.default_clip_skip if family.skips_layers_of_negative else None
    return family.encode_text(teacher.parts, [family.negative_prompt], skip)


def _encode_picture(teacher: ImageAnimationPipeline, source: CaptionedSource, row: int) -> Cond:
    from .passes import encode_pictures

    random = torch.Generator().manual_seed((source.seed * 1_000_003 + row) % 2**63)
    return encode_pictures(teacher, [source.picture(row)], random)


def _write(path: Path, cond: Cond) -> None:
    tensors = {name: tensor[0].contiguous().cpu() for name, tensor in cond.items()}
    write_beside(path, lambda partial: save_file(tensors, str(partial)))


def _read(paths: Sequence[Path]) -> Cond:
    """Return the content of files as one batch."""
    read: dict[Path, dict[str, Tensor]] = {}
    for path in paths:
        if path not in read:
            try:
                read[path] = load_file(str(path))
            except (OSError, SafetensorError) as error:
                raise StillmotionError(f"{path}: cannot be read ({first_line(error)}); remove its folder") from error
    return {name: torch.stack([read[path][name] for path in paths]) for name in read[paths[0]]}


def _digest(source: CaptionedSource, about: Sequence[object]) -> str:
    """SHA-256 of what the files were made of: files by size and time, captions, and what the caller says."""
    digest = hashlib.sha256(json.dumps([*about, source.seed, source.shape.height, source.shape.width]).encode())
    for path, caption in source.rows:
        stat = path.stat()
        digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns} {caption}\n".encode())
    return digest.hexdigest()


def _read_about(folder: Path) -> object:
    try:
        found: object = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
