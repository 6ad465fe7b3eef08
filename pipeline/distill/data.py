"""What a student is trained on: pictures with captions, and clips where there are some.

A source is asked by number, and the same number always gives the same examples: a run that was broken
off goes on exactly where it stopped, and each process of a group takes numbers of its own.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..clips import SceneGenerator
from ..errors import StillmotionError


@dataclass
class Encoded:
    """What the encoders made of examples, one after the other along dimension 0.

    Attributes:
        texts, negative: of the captions, and of the negative prompt.
        pictures: None where the pictures are still to be encoded.
        clips: latents, `(batch, channels, frames, h, w)`; None where there are none, or they are still to be encoded.
    """

    texts: Mapping[str, Tensor]
    negative: Mapping[str, Tensor]
    pictures: Mapping[str, Tensor] | None
    clips: Tensor | None = None


@dataclass
class Examples:
    """RGB pictures of any size, each with a caption.

    Attributes:
        pictures: none where they are encoded.
        clips: `(batch, 3, frames, height, width)` in [0, 1], that begin with the pictures; None where
            there are pictures alone.
        encoded: what was encoded before training; None: all is encoded when it is used.
    """

    pictures: list[Image]
    captions: list[str]
    clips: Tensor | None = None
    encoded: Encoded | None = None


class Source(Protocol):
    """Examples by number."""

    has_clips: bool
    """Whether there are clips beside the pictures, which `Trajectory.FORWARD` needs."""

    def __getitem__(self, index: int) -> Examples:
        """Return the examples of number `index`; there is no last one."""
        ...


class GeneratedSource(Dataset[Examples]):
    """Scenes (`pipeline.clips`) of the combinations that training may see, `batch` of them a number.

    A third of the backgrounds are photographs where the package that brings them is installed. Sources of different
    seeds share no scene but by chance.
    """

    has_clips = True

    def __init__(self, size: int, frames: int, batch: int, seed: int = 0) -> None:
        self.size, self.frames, self.batch, self.seed = size, frames, batch, seed
        self.photograph_share = 0.35 if find_spec("skimage") else 0.0

    def __getitem__(self, index: int) -> Examples:
        # Seeds of neighbouring numbers lie far apart, so that no two sources run into each other.
        seed = (self.seed * 1_000_003 + index) * 7_919 % 2**62
        # Speeds and changes of size are rare by default, and are learned last.
        source = SceneGenerator(
            self.size, self.frames, seed, photograph_share=self.photograph_share, speed_share=0.5, resize_share=0.15
        )
        made = source.batch(self.batch)
        return Examples(made.pictures(), made.captions, made.clips)


def read(source: Source, numbers: list[int], workers: int = 0) -> Iterator[tuple[int, Examples]]:
    """Read the examples of numbers, in their order; what the source says of those that it cannot read is raised.

    Args:
        workers: processes that read ahead; 0: this one reads.
    """
    loader: DataLoader[tuple[int, Examples | StillmotionError]] = DataLoader(
        _Numbered(source),  # type: ignore[arg-type]  # a dataset without a length
        sampler=numbers,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ignore_interrupts,
    )
    for number, examples in loader:
        if isinstance(examples, StillmotionError):
            raise examples
        yield number, examples


def _ignore_interrupts(_worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the one that trains decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Numbered:
    """Examples together with their number, or with what is wrong with them.

    An error that is raised in a worker arrives as another one, with the worker's traceback for a text.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, number: int) -> tuple[int, Examples | StillmotionError]:
        try:
            return number, self.source[number]
        except StillmotionError as error:
            return number, error
