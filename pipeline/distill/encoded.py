"""Captions, pictures and clips of a folder, encoded once before training, and read from files when their turn comes.

Each update would encode its captions and pictures anew, with encoders that are often larger than a student: T5-XXL has
5 billion weights, and an autoencoder of video encodes all frames of a clip for a picture. What they make of a caption
or a picture does not change while the student learns. Files lie in the run's folder, so that several processes share
the work and a run that goes on has nothing to encode; the system keeps in memory what fits there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import StillmotionError, first_line
from ..writing import write_atomically, write_beside
from .data import Encoded, Examples
from .folders import CaptionedSource, to_clip

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline
    from ..model.families import Cond

_ABOUT = "about.json"
_LATENTS = "latents"

Kind = Literal["pictures", "clips"]

Together = Callable[[], None]
"""Waits until all processes have come as far."""


class EncodedSource(Dataset[Examples]):
    """Examples of a folder, with what the encoders made of them.

    Args:
        inner: the folder's own. Nothing is read of it any more but clips of videos that are another at each visit.
        folder: of the files, `texts/NUMBER.safetensors`, `pictures/ROW-TAKE.safetensors` and, of latents, `clips/...`.
        numbers: of the examples that are asked for.
        latents: whether the latents of clips are wanted beside what is made of their pictures.

    Attributes:
        captions: in the order of their files; the first is the negative prompt's place.
        visits: rows and takes that are asked for, each once.
    """

    def __init__(self, inner: CaptionedSource, folder: Path, numbers: Iterable[int], *, latents: bool = False) -> None:
        self.inner, self.folder, self.has_clips = inner, folder, inner.has_clips
        self.encodes_pictures = bool(inner.clips_per_video)
        self.latents = latents and inner.has_clips and self.encodes_pictures
        self.captions = ["", *sorted({caption for _, caption in inner.rows})]
        self._places = {caption: number for number, caption in enumerate(self.captions)}
        self.visits = sorted({visit for number in numbers for visit in inner.visits(number)})

    def text(self, number: int) -> Path:
        return self.folder / "texts" / f"{number}.safetensors"

    def picture(self, row: int, take: int = 0, kind: Kind = "pictures") -> Path:
        return self.folder / kind / f"{row}-{take}.safetensors"

    @property
    def texts(self) -> list[int]:
        """Numbers of the texts that are asked for."""
        return sorted({0, *(self._places[self.inner.rows[row][1]] for row, _ in self.visits)})

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What is encoded of each picture or clip."""
        if not self.encodes_pictures:
            return ()
        return ("pictures", "clips") if self.latents else ("pictures",)

    def saving(self, clips: int, texts_each: int) -> str:
        """Return in words how many passes of the encoders are saved.

        Args:
            clips: that a training sees, one after the other.
            texts_each: texts that each is guided by: its caption, and the negative prompt where there is guidance.
        """
        pictures = len(self.visits) if self.encodes_pictures else 0
        texts, each = len(self.texts), len(self.kinds)
        kind = "clips of videos" if self.has_clips else "pictures"
        return (
            f"{texts} texts and {pictures} {kind} are encoded once: {texts + pictures * each} passes of the encoders, "
            f"where {clips} clips would take {clips * (texts_each + each)}"
        )

    def __getitem__(self, index: int) -> Examples:
        """Return the examples of a number; without pictures and clips, where these are encoded.

        Raises:
            StillmotionError: a file is damaged or missing.
        """
        inner, visits = self.inner, self.inner.visits(index)
        captions = [inner.rows[row][1] for row, _ in visits]
        texts = _read([self.text(self._places[caption]) for caption in captions])
        negative = _read([self.text(0)] * len(visits))
        if not self.encodes_pictures:
            return replace(inner[index], encoded=Encoded(texts, negative, None))
        made = {kind: _read([self.picture(*visit, kind) for visit in visits]) for kind in self.kinds}
        clips = made["clips"][_LATENTS] if self.latents else None
        return Examples([], captions, encoded=Encoded(texts, negative, made["pictures"], clips))


@torch.no_grad()
def encode_once(
    teacher: ImageAnimationPipeline,
    encoded: EncodedSource,
    about: Sequence[object],
    *,
    rank: int = 0,
    processes: int = 1,
    together: Together = lambda: None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode what is asked for and not there yet, each caption and each picture or clip once.

    A family whose autoencoder draws from its posterior draws once a picture. Files that are there already are kept,
    where they were made of the same.

    Args:
        about: what they depend on beside the data: the teacher and the shape of a clip, for example.
        rank, processes: which process this is of how many that share the folder; each encodes its part.
        together: called by each when they have to wait for each other.
        on_progress: called with (files done, files in all) by the first process.

    Raises:
        StillmotionError: a picture or video cannot be read, or a file cannot be written.
    """
    folder, digest = encoded.folder, _digest(encoded, about)
    if rank == 0 and _read_about(folder) != digest:
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("texts", "pictures", "clips"):
            (folder / name).mkdir(parents=True)
        write_atomically(folder / _ABOUT, json.dumps(digest) + "\n")
    together()
    tasks = [
        *((encoded.text(n), partial(encode_text, teacher, encoded.captions[n] if n else None)) for n in encoded.texts),
        *(
            (encoded.picture(*visit, kind), partial(_encode_pictures, teacher, encoded.inner, *visit, kind))
            for visit in encoded.visits
            for kind in encoded.kinds
        ),
    ]
    mine = tasks[rank::processes]
    for done, (path, encode) in enumerate(mine, start=1):
        if not path.is_file():
            _write(path, encode())
        if on_progress is not None and rank == 0:
            on_progress(done, len(mine))
    together()


def encode_text(teacher: ImageAnimationPipeline, caption: str | None) -> Cond:
    """Return what the network is given of a caption, or of the negative prompt where it is None, as a batch of one."""
    family = teacher.family
    if caption is not None:
        return family.encode_text(teacher.parts, [caption], teacher.default_clip_skip)
    skip = teacher.default_clip_skip if family.skips_layers_of_negative else None
    return family.encode_text(teacher.parts, [family.negative_prompt], skip)


def _encode_pictures(teacher: ImageAnimationPipeline, source: CaptionedSource, row: int, take: int, kind: Kind) -> Cond:
    """Return what the network is given of a picture, or of a clip's first frame; or the latents of the clip."""
    from .passes import encode_pictures

    seen, family = source.pictures(row, take), teacher.family
    if kind == "clips":
        return {_LATENTS: family.encode_clip(teacher.parts, to_clip(seen)[None] * 2 - 1)}
    random = torch.Generator().manual_seed((source.seed * 1_000_003 + row + len(source.rows) * take) % 2**63)
    ends = [seen[-1]] if family.last_image(teacher.parts) == "always" else None
    return encode_pictures(teacher, [seen[0]], random, ends)


def _write(path: Path, cond: Cond) -> None:
    tensors = {name: tensor[0].contiguous().cpu() for name, tensor in cond.items()}
    write_beside(path, lambda partial: save_file(tensors, str(partial)))


def _read(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Return the content of files as one batch."""
    read: dict[Path, dict[str, Tensor]] = {}
    for path in paths:
        if path not in read:
            try:
                read[path] = load_file(str(path))
            except (OSError, SafetensorError) as error:
                raise StillmotionError(f"{path}: cannot be read ({first_line(error)}); remove its folder") from error
    return {name: torch.stack([read[path][name] for path in paths]) for name in read[paths[0]]}


def _digest(encoded: EncodedSource, about: Sequence[object]) -> str:
    """SHA-256 of what the files were made of: files by size and time, captions, and what the caller says."""
    source = encoded.inner
    made_of = [*about, source.seed, *astuple(source.shape), source.clips_per_video]
    digest = hashlib.sha256(json.dumps(made_of).encode())
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
