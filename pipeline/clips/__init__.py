"""Scenes: generated clips of sprites that move as their caption says, or of a camera that does.

They train and judge the embedded teacher. Nothing is stored: a clip is a function of its seed.

- `vocabulary`, `phrases`: the words of captions, and which combinations are held out of training.
- `backgrounds`, `photographs`, `sprites`: what a frame is made of, as batched tensor functions.
- `scenes`: whole clips with captions and the facts needed to judge a copy of them.
- `motion`: reads the motion back out of a clip.
"""

from .motion import classify_motion, measure_motion
from .scenes import Scene, SceneGenerator, Scenes
from .vocabulary import COLOURS, MOTIONS, SHAPES, is_held_out

__all__ = [
    "COLOURS",
    "MOTIONS",
    "SHAPES",
    "Scene",
    "SceneGenerator",
    "Scenes",
    "classify_motion",
    "is_held_out",
    "measure_motion",
]
