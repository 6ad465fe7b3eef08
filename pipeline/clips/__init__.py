"""Generated clips: coloured sprites on varied backgrounds that move as their caption says.

They train and judge the embedded teacher. Nothing is stored: a clip is a function of its seed.

- `vocabulary`: the words of captions, and which combinations are held out of training.
- `backgrounds`, `sprites`: what a frame is made of, as batched tensor functions.
- `generator`: whole clips with captions and the facts needed to judge a copy of them.
- `motion`: reads the motion back out of a clip.
"""

from .generator import ClipBatch, ClipGenerator, ClipSpec
from .motion import classify_motion, measure_motion
from .vocabulary import COLOURS, MOTIONS, SHAPES, caption_of, is_held_out

__all__ = [
    "COLOURS",
    "MOTIONS",
    "SHAPES",
    "ClipBatch",
    "ClipGenerator",
    "ClipSpec",
    "caption_of",
    "classify_motion",
    "is_held_out",
    "measure_motion",
]
