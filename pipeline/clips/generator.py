"""Whole clips with captions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import backgrounds, sprites
from .vocabulary import COLOURS, GENERIC_SHAPES, MOTIONS, SHAPES, caption_of, is_held_out

# Least mean squared distance between the sprite's colour and the background under its path.
_LEAST_CONTRAST = 0.06


@dataclass(frozen=True)
class ClipSpec:
    """What a clip shows. Lengths are shares of the frame's height; `travel` is over the whole clip."""

    colour: str
    shape: str
    motion: str
    x: float
    y: float
    radius: float
    travel: float
    scale: float = 1.0

    @property
    def caption(self) -> str:
        return caption_of(self.colour, self.shape, self.motion)

    def path(self, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return centre x, centre y and radius in each frame, `(frames,)` each, in shares of the height."""
        t = torch.linspace(0, 1, frames)
        x, y = torch.full((frames,), self.x), torch.full((frames,), self.y)
        radius = torch.full((frames,), self.radius)
        match self.motion:
            case "moves left":
                x = x - self.travel * t
            case "moves right":
                x = x + self.travel * t
            case "moves up":
                y = y - self.travel * t
            case "moves down":
                y = y + self.travel * t
            case "jumps":
                y = y - self.travel * torch.sin(math.pi * t)
            case "grows" | "shrinks":
                radius = radius * (1 + (self.scale - 1) * t)
        return x, y, radius


@dataclass
class ClipBatch:
    """Clips with what is needed to judge a copy of them.

    Attributes:
        clips: `(batch, 3, frames, size, size)`, float in [0, 1].
        captions: one for each clip.
        specs: one for each clip.
        backgrounds: `(batch, 3, size, size)`, the picture without its sprite.
        colours: `(batch, 3)`, the sprite's colour as painted.
        masks: `(batch, frames, size, size)`, how much of each pixel the sprite covers.
    """

    clips: Tensor
    captions: list[str]
    specs: list[ClipSpec]
    backgrounds: Tensor
    colours: Tensor
    masks: Tensor

    def pictures(self, at: int = 0) -> list[Image.Image]:
        """Return a frame of each clip, by default the first, as the pictures that a person would send."""
        frames = (self.clips[:, :, at].permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
        return [Image.fromarray(frame) for frame in frames]


class ClipGenerator:
    """Makes clips from random numbers.

    Args:
        size: height and width of a frame, in pixels.
        frames: frames in a clip.
        seed: of the stream of clips. Streams of different seeds share no clip but by chance.
        held_out: take combinations of colour, shape and motion that training never sees (true),
            or only those that it may see (false).
        variety: now and then paint a sprite without a name, stand a second one beside it, or word
            the caption differently, as training wants it. Without, each clip has one named sprite
            and the plain caption, as judging wants it.
        plain_share: of clips before one colour or a gradient.
        often: shapes and motions that are drawn three times as often as the others.
    """

    def __init__(
        self,
        size: int = 64,
        frames: int = 8,
        seed: int = 0,
        held_out: bool = False,
        variety: bool = False,
        plain_share: float = 0.0,
        often: tuple[str, ...] = (),
    ) -> None:
        if size < 16:
            raise ValueError(f"size: {size} is below 16 pixels")
        if frames < 2:
            raise ValueError(f"frames: {frames} is below 2")
        self.size, self.frames, self.held_out, self.variety = size, frames, held_out, variety
        self.plain_share = plain_share
        unknown = set(often) - {*SHAPES, *MOTIONS}
        if unknown:
            raise ValueError(f"often: {min(unknown)!r} is neither a shape nor a motion")
        self._shapes = SHAPES + 2 * tuple(word for word in often if word in SHAPES)
        self._motions = MOTIONS + 2 * tuple(word for word in often if word in MOTIONS)
        self.random = torch.Generator().manual_seed(seed)

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.random))

    def _pick(self, options: tuple[str, ...]) -> str:
        return options[int(torch.randint(len(options), (), generator=self.random))]

    def spec(self) -> ClipSpec:
        """Draw what the next clip shows."""
        while True:
            colour, shape, motion = self._pick(tuple(COLOURS)), self._pick(self._shapes), self._pick(self._motions)
            if is_held_out(colour, shape, motion) == self.held_out:
                break
        radius, travel, scale = self._uniform(0.11, 0.18), self._uniform(0.26, 0.42), 1.0
        if motion == "grows":
            radius, scale = self._uniform(0.09, 0.13), self._uniform(1.7, 2.2)
        elif motion == "shrinks":
            radius, scale = self._uniform(0.18, 0.25), self._uniform(0.42, 0.58)
        # Keep the whole path inside the frame.
        margin = radius * max(scale, 1.0) + 0.02
        low_x = low_y = margin
        high_x = high_y = 1 - margin
        if motion == "moves left":
            low_x += travel
        elif motion == "moves right":
            high_x -= travel
        elif motion in ("moves up", "jumps"):
            low_y += travel
        elif motion == "moves down":
            high_y -= travel
        x, y = self._uniform(low_x, high_x), self._uniform(low_y, high_y)
        return ClipSpec(colour, shape, motion, x, y, radius, travel, scale)

    def _painted_colour(self, name: str) -> Tensor:
        """Return the named colour with a little variation, so that names mean ranges."""
        jitter = (torch.rand(3, generator=self.random) - 0.5) * 0.12
        return (torch.tensor(COLOURS[name]) + jitter).clamp(0, 1)

    def clip(self) -> tuple[Tensor, str, ClipSpec, Tensor, Tensor, Tensor]:
        """Return one clip `(3, frames, size, size)`, its caption, spec, background, painted colour and mask."""
        spec = self.spec()
        shape, caption = self._outline(spec) if self.variety else (spec.shape, spec.caption)
        x, y, radius = (v * self.size for v in spec.path(self.frames))
        mask = sprites.coverage(shape, x, y, radius, self.size)  # (frames, size, size)
        swept = mask.amax(dim=0)
        colour = self._painted_colour(spec.colour)
        while True:
            background = self._background()
            contrast = ((background - colour[:, None, None]) ** 2).mean(dim=0)
            if float((contrast * swept).sum() / swept.sum()) >= _LEAST_CONTRAST:
                break
        if self.variety and self._uniform(0, 1) < 0.12:
            background, caption = self._with_bystander(background, swept, spec, caption)
        clip = background[:, None] * (1 - mask) + colour[:, None, None, None] * mask
        return clip, caption, spec, background, colour, mask

    def _background(self) -> Tensor:
        # No number is drawn for a share of 0, so that a seed gives the clips it always gave.
        if self.plain_share and self._uniform(0, 1) < self.plain_share:
            return backgrounds.plain_background(self.random, self.size)
        return backgrounds.random_background(self.random, self.size)

    def _outline(self, spec: ClipSpec) -> tuple[str | list[tuple[float, float]], str]:
        """Return what to paint and what to call it: mostly the named shape and the plain caption."""
        shape: str | list[tuple[float, float]] = spec.shape
        noun, colour = spec.shape, f"{spec.colour} "
        if self._uniform(0, 1) < 0.15:
            shape, noun = sprites.odd_polygon(self.random), self._pick(GENERIC_SHAPES)
        if self._uniform(0, 1) < 0.08:
            colour = ""
        article = "the" if self._uniform(0, 1) < 0.15 else "an" if (colour or noun)[0] in "aeiou" else "a"
        return shape, f"{article} {colour}{noun} {spec.motion}"

    def _with_bystander(self, background: Tensor, swept: Tensor, spec: ClipSpec, caption: str) -> tuple[Tensor, str]:
        """Stand a second sprite, of another colour, beside the path of the first, if there is room."""
        name = self._pick(tuple(c for c in COLOURS if c != spec.colour))
        shape = self._pick(SHAPES)
        for _ in range(8):
            place = [torch.tensor([self._uniform(0.15, 0.85) * self.size]) for _ in "xy"]
            radius = torch.tensor([self._uniform(0.10, 0.15) * self.size])
            mask = sprites.coverage(shape, place[0], place[1], radius, self.size)[0]
            if float((mask * swept).sum()) == 0:
                background = background * (1 - mask) + self._painted_colour(name)[:, None, None] * mask
                if self._uniform(0, 1) < 0.6:
                    caption += f" and {caption_of(name, shape, 'stays still')}"
                break
        return background, caption

    def batch(self, count: int) -> ClipBatch:
        """Return the next `count` clips."""
        made = [self.clip() for _ in range(count)]
        return ClipBatch(
            clips=torch.stack([m[0] for m in made]),
            captions=[m[1] for m in made],
            specs=[m[2] for m in made],
            backgrounds=torch.stack([m[3] for m in made]),
            colours=torch.stack([m[4] for m in made]),
            masks=torch.stack([m[5] for m in made]),
        )
