"""The words of the generated captions."""

from __future__ import annotations

# sRGB in [0, 1]. The hues are far enough apart that a person names each without doubt.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.12),
    "green": (0.10, 0.65, 0.20),
    "blue": (0.12, 0.25, 0.86),
    "yellow": (0.98, 0.86, 0.12),
    "orange": (0.98, 0.50, 0.06),
    "purple": (0.52, 0.16, 0.68),
    "cyan": (0.10, 0.80, 0.86),
    "pink": (0.98, 0.48, 0.72),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.05),
}

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "diamond", "ring", "cross", "heart")

# Nouns for a sprite whose outline has no name.
GENERIC_SHAPES: tuple[str, ...] = ("shape", "thing", "object")

MOTIONS: tuple[str, ...] = (
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "stays still",
    "grows",
    "shrinks",
    "jumps",
)


def is_held_out(colour: str, shape: str, motion: str) -> bool:
    """Return whether a combination is kept out of training (one in seven).

    The pattern is a Latin one: each colour, shape and motion, and each pair of them, is seen in
    training, so that a held-out clip asks for composition and not for an unknown word.
    """
    c, s, m = list(COLOURS).index(colour), SHAPES.index(shape), MOTIONS.index(motion)
    return (c + 2 * s + 3 * m) % 7 == 0
