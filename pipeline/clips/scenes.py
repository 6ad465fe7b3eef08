"""Scenes: textured sprites before drawings and photographs, one or two of them, or a camera that moves.

Each clip is a function of its seed. What it shows is known in full, so that a copy of it can be judged: where each
sprite is, what it hides, and what the caption asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from . import backgrounds, photographs, sprites
from .phrases import CAMERA, NOUNS, SPEEDS, VERBS, noun_phrase, pick
from .vocabulary import COLOURS, GENERIC_SHAPES, MOTIONS, SHAPES, is_held_out

_LEAST_CONTRAST = 0.05  # mean squared distance between a sprite and what it covers on its way
# How far a sprite gets, in shares of the frame's height, and how much it grows: little is left to chance, since what
# neither picture nor caption says can be learned as a blur only. At 64 pixels and 17 frames, half of the frame is one
# latent cell of 8 pixels for each latent frame: a plain shift, which a network finds within minutes.
_TRAVEL = {"": 0.5, "slow": 0.25, "fast": 0.75}
_JUMP = 0.7  # of the travel
_RESIZES = ("grows", "shrinks")
_GROWTH = {"": (1.85, 1.95), "slow": (1.35, 1.4), "fast": (2.45, 2.55)}


@dataclass(frozen=True)
class Sprite:
    """One sprite and its way. Lengths are shares of the frame's height."""

    colour: str
    shape: str
    motion: str
    speed: str
    x: float
    y: float
    radius: float
    travel: float
    scale: float

    def path(self, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return centre x, centre y and radius in each frame, `(frames,)` each."""
        t = torch.linspace(0, 1, frames)
        x, y = torch.full((frames,), self.x), torch.full((frames,), self.y)
        radius = self.radius * (1 + (self.scale - 1) * t)
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
        return x, y, radius


@dataclass
class Scene:
    """A clip and what it shows.

    Attributes:
        clip: `(3, frames, size, size)`, float in [0, 1].
        caption: what a person would type.
        sprite: the one whose motion is captioned; None where only the camera moves.
        mask: `(frames, size, size)`, how much of each pixel that sprite covers.
        background: `(3, size, size)`, the first frame without it.
        camera: a name of `CAMERA`.
    """

    clip: Tensor
    caption: str
    sprite: Sprite | None
    mask: Tensor
    background: Tensor
    camera: str

    def picture(self, at: int = 0) -> Image.Image:
        """Return a frame, by default the first, as the picture that a person would send."""
        return Image.fromarray((self.clip[:, at].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


@dataclass
class Scenes:
    """Scenes of one size, one after the other along dimension 0."""

    scenes: list[Scene]

    @property
    def clips(self) -> Tensor:
        """`(batch, 3, frames, size, size)`, float in [0, 1]."""
        return torch.stack([scene.clip for scene in self.scenes])

    @property
    def captions(self) -> list[str]:
        return [scene.caption for scene in self.scenes]

    def pictures(self, at: int = 0) -> list[Image.Image]:
        """Return a frame of each, by default the first."""
        return [scene.picture(at) for scene in self.scenes]


class SceneGenerator:
    """Makes scenes from random numbers.

    Args:
        size: height and width of a frame, in pixels.
        frames: frames in a clip.
        seed: of the stream of scenes.
        held_out: take combinations of colour, shape and motion, and photographs, that training never sees.
        plain: one sprite of one colour, the plain words, nothing but drawn backgrounds, most of them of one colour or
            a gradient, and no camera or speed: to begin with.
        judged: as `plain`, but with all drawn backgrounds and all speeds: one sprite whose way can be read back.
        photograph_share: of backgrounds that are photographs.
        speed_share: of moving sprites whose caption says how fast.
        resize_share: of sprites that grow or shrink because of this alone; of the others, a quarter does.
    """

    def __init__(
        self,
        size: int = 64,
        frames: int = 17,
        seed: int = 0,
        held_out: bool = False,
        plain: bool = False,
        judged: bool = False,
        photograph_share: float = 0.35,
        speed_share: float = 0.3,
        resize_share: float = 0.0,
    ) -> None:
        if size < 16:
            raise ValueError(f"size: {size} is below 16 pixels")
        if frames < 2:
            raise ValueError(f"frames: {frames} is below 2")
        self.size, self.frames, self.held_out, self.plain, self.judged = size, frames, held_out, plain, judged
        self.simple = plain or judged
        self.photograph_share, self.speed_share, self.resize_share = photograph_share, speed_share, resize_share
        self.random = torch.Generator().manual_seed(seed)

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.random))

    def _chance(self, share: float) -> bool:
        return self._uniform(0, 1) < share

    def _pick(self, options: tuple[str, ...], first: float = 0.0) -> str:
        return pick(options, self.random, first)

    def scene(self) -> Scene:
        """Return the next scene."""
        if not self.simple and self._chance(0.16):
            return self._camera_scene()
        return self._sprite_scene()

    def batch(self, count: int) -> Scenes:
        """Return the next `count` scenes."""
        return Scenes([self.scene() for _ in range(count)])

    # Backgrounds -----------------------------------------------------------------------------------------------------

    def _background(self, size: int) -> Tensor:
        if self.plain and self._chance(0.8):
            return backgrounds.plain_background(self.random, size)
        if not self.simple and self._chance(self.photograph_share):
            return photographs.crop(self.random, size, self.held_out)
        return backgrounds.random_background(self.random, size)

    # Sprites ---------------------------------------------------------------------------------------------------------

    def _sprite(self) -> Sprite:
        while True:
            motions = _RESIZES if self.resize_share and self._chance(self.resize_share) else MOTIONS
            colour, shape, motion = self._pick(tuple(COLOURS)), self._pick(SHAPES), self._pick(motions)
            if is_held_out(colour, shape, motion) == self.held_out:
                break
        unhurried = self.plain or motion == "stays still" or self._chance(1 - self.speed_share)
        speed = "" if unhurried else self._pick(tuple(SPEEDS))
        radius, travel, scale = self._uniform(0.10, 0.18), _TRAVEL[speed], 1.0
        if speed == "fast":
            radius = self._uniform(0.08, 0.11)  # a large one has nowhere to go
        if motion == "grows":
            radius, scale = self._uniform(0.09, 0.13), self._uniform(*_GROWTH[speed])
        elif motion == "shrinks":
            radius, scale = self._uniform(0.18, 0.25), 1 / self._uniform(*_GROWTH[speed])
        margin = radius * max(scale, 1.0) + 0.02
        low_x = low_y = margin
        high_x = high_y = 1 - margin
        # It begins inside the frame, and may leave it by half at the end.
        if motion == "moves left":
            low_x = max(low_x, travel)
        elif motion == "moves right":
            high_x = min(high_x, 1 - travel)
        elif motion == "jumps":
            travel *= _JUMP
            low_y = max(low_y, travel)
        elif motion == "moves up":
            low_y = max(low_y, travel)
        elif motion == "moves down":
            high_y = min(high_y, 1 - travel)
        return Sprite(colour, shape, motion, speed, self._uniform(low_x, high_x), self._uniform(low_y, high_y),
                      radius, travel, scale)  # fmt: skip

    def _painted(self, sprite: Sprite, shape: str | list[tuple[float, float]], frames: int) -> tuple[Tensor, Tensor]:
        """Return cover `(frames, size, size)` and paint `(3, frames, size, size)` of a sprite."""
        x, y, radius = (v * self.size for v in sprite.path(frames))
        mask = sprites.coverage(shape, x, y, radius, self.size)
        jitter = (torch.rand(3, generator=self.random) - 0.5) * 0.12
        colour = (torch.tensor(COLOURS[sprite.colour]) + jitter).clamp(0, 1)
        paint = colour[:, None, None, None].expand(3, frames, self.size, self.size)
        if self.simple or self._chance(0.6):
            return mask, paint
        axis = torch.arange(self.size) + 0.5
        u = (axis[None, None, :] - x[:, None, None]) / radius[:, None, None]
        v = (axis[None, :, None] - y[:, None, None]) / radius[:, None, None]
        angle, waves = self._uniform(0, math.pi), self._uniform(1.0, 2.5)
        match self._pick(("shade", "stripes", "spots", "light")):
            case "shade":
                mix = (u * math.cos(angle) + v * math.sin(angle)) / 2 + 0.5
            case "stripes":
                mix = torch.sigmoid(4 * torch.sin(waves * math.pi * (u * math.cos(angle) + v * math.sin(angle))))
            case "spots":
                mix = torch.sigmoid(6 * (torch.sin(waves * math.pi * u) * torch.sin(waves * math.pi * v) - 0.3))
            case _:
                mix = (1.1 - torch.hypot(u + 0.35, v + 0.35)).clamp(0, 1) ** 2
        # Towards white or black, but not so far that the colour would have another name.
        other = torch.ones(3) if float(colour.mean()) < 0.45 else torch.zeros(3)
        mix = (mix.clamp(0, 1) * self._uniform(0.2, 0.35)).broadcast_to(mask.shape)
        return mask, paint * (1 - mix) + other[:, None, None, None] * mix

    def _words(self, sprite: Sprite, article: str = "a") -> tuple[str | list[tuple[float, float]], str, str]:
        """Return what to paint, what to call it and what to say that it does."""
        shape: str | list[tuple[float, float]] = sprite.shape
        if self.simple:
            adverb = f" {SPEEDS[sprite.speed][0]}" if sprite.speed else ""
            return shape, noun_phrase(sprite.colour, sprite.shape), sprite.motion + adverb
        noun = self._pick(NOUNS[sprite.shape], first=0.5)
        if not self.held_out and self._chance(0.12):
            shape = sprites.odd_polygon(self.random)
            noun = self._pick(GENERIC_SHAPES) if self._chance(0.5) else self._unknown_word()
        colour = "" if not self.held_out and self._chance(0.06) else sprite.colour
        verb = self._pick(VERBS[sprite.motion], first=0.4)
        if sprite.speed:
            adverb = self._pick(SPEEDS[sprite.speed])
            verb = (
                f"{verb} {adverb}" if adverb in ("a little", "far", "fast") or self._chance(0.6) else f"{adverb} {verb}"
            )
        return shape, noun_phrase(colour, noun, "the" if self._chance(0.25) else article), verb

    def _unknown_word(self) -> str:
        """Return a word that no caption has: people name things that training never heard of."""
        letters = torch.randint(26, (3 + int(torch.randint(6, (), generator=self.random)),), generator=self.random)
        return "".join(chr(97 + letter) for letter in letters.tolist())

    def _sprite_scene(self) -> Scene:
        sprite = self._sprite()
        shape, name, verb = self._words(sprite)
        mask, paint = self._painted(sprite, shape, self.frames)
        swept = mask.amax(dim=0)
        while True:
            background = self._background(self.size)
            contrast = ((background[:, None] - paint) ** 2).mean(dim=0)
            if float((contrast * mask).sum() / mask.sum()) >= _LEAST_CONTRAST:
                break
        caption = f"{name} {verb}"
        still = background[:, None].expand(3, self.frames, self.size, self.size)
        if not self.simple and self._chance(0.25):
            still, caption = self._with_second(background, swept, sprite, caption)
        clip = still * (1 - mask) + paint * mask
        return Scene(clip.contiguous(), caption, sprite, mask, still[:, 0].contiguous(), "is still")

    def _with_second(self, background: Tensor, swept: Tensor, first: Sprite, caption: str) -> tuple[Tensor, str]:
        """Add a sprite of another colour off the way of the first one; it rests, or moves too."""
        frames = self.frames
        for _ in range(6):
            second = self._sprite()
            if second.colour == first.colour:
                continue
            moves = self._chance(0.4)
            if not moves:
                second = Sprite(second.colour, second.shape, "stays still", "", second.x, second.y, second.radius, 0, 1)
            shape, name, verb = self._words(second)
            mask, paint = self._painted(second, shape, frames)
            if float((mask.amax(dim=0) * swept).sum()) > 0:
                continue
            if moves or self._chance(0.4):
                caption = f"{caption} and {name} {verb}"
            still = background[:, None].expand(3, frames, self.size, self.size)
            return still * (1 - mask) + paint * mask, caption
        return background[:, None].expand(3, frames, self.size, self.size), caption

    # The camera ------------------------------------------------------------------------------------------------------

    def _camera_scene(self) -> Scene:
        """Return a scene in which nothing moves but the camera; a sprite may stand in it."""
        camera = self._pick(tuple(CAMERA))
        world = self._background(2 * self.size)
        if self._chance(0.5):
            sprite = self._sprite()
            still = Sprite(sprite.colour, sprite.shape, "stays still", "", 0.5, 0.5, sprite.radius, 0, 1)
            mask, paint = self._painted(still, sprite.shape, 1)
            mask, paint = (F.interpolate(one.reshape(1, -1, self.size, self.size), scale_factor=2, mode="bilinear")[0]
                           for one in (mask, paint))  # fmt: skip
            world = world * (1 - mask) + paint * mask
        t = torch.linspace(0, 1, self.frames)
        zoom, dx, dy = torch.full_like(t, 0.55), torch.zeros_like(t), torch.zeros_like(t)
        reach = self._uniform(0.24, 0.26)  # in half widths of the world: a quarter of the frame
        match camera:
            case "pans left":
                dx = -reach * t
            case "pans right":
                dx = reach * t
            case "pans up":
                dy = -reach * t
            case "pans down":
                dy = reach * t
            case "zooms in":
                zoom = 0.7 - self._uniform(0.22, 0.24) * t
            case "zooms out":
                zoom = 0.5 + self._uniform(0.22, 0.24) * t
        zero = torch.zeros_like(t)
        theta = torch.stack([zoom, zero, dx, zero, zoom, dy], dim=1).reshape(-1, 2, 3)
        grid = F.affine_grid(theta, [self.frames, 3, self.size, self.size], align_corners=False)
        clip = F.grid_sample(world.expand(self.frames, -1, -1, -1), grid, "bilinear", "reflection", align_corners=False)
        clip = clip.transpose(0, 1).contiguous()
        nothing = torch.zeros(self.frames, self.size, self.size)
        return Scene(clip, self._pick(CAMERA[camera], first=0.4), None, nothing, clip[:, 0], camera)
