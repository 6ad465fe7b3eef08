"""Captions in the words of people: synonyms of shapes and motions, speeds, two sprites, the camera."""

from __future__ import annotations

import torch

from .vocabulary import COLOURS, GENERIC_SHAPES, MOTIONS, SHAPES

NOUNS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "ball", "disc", "dot"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "sail"),
    "star": ("star",),
    "diamond": ("diamond", "gem", "kite"),
    "ring": ("ring", "hoop", "donut"),
    "cross": ("cross", "plus"),
    "heart": ("heart",),
}
"""What people call each shape; the first is its own name."""

VERBS: dict[str, tuple[str, ...]] = {
    "moves left": ("moves left", "goes left", "slides left", "drifts left", "moves to the left", "flies to the left"),
    "moves right": (
        "moves right",
        "goes right",
        "slides right",
        "drifts right",
        "moves to the right",
        "flies to the right",
    ),
    "moves up": ("moves up", "goes up", "rises", "flies up", "floats up", "moves upwards"),
    "moves down": ("moves down", "goes down", "falls", "sinks", "drops", "moves downwards"),
    "stays still": ("stays still", "stands still", "does not move", "stays", "rests"),
    "grows": ("grows", "gets bigger", "gets larger", "expands", "swells"),
    "shrinks": ("shrinks", "gets smaller", "contracts"),
    "jumps": ("jumps", "hops", "bounces", "leaps"),
}
"""What people say for each motion; the first is its own name."""

SPEEDS: dict[str, tuple[str, ...]] = {"slow": ("slowly", "gently", "a little"), "fast": ("quickly", "fast", "far")}
"""Adverbs that say how far a sprite gets in a clip."""

CAMERA: dict[str, tuple[str, ...]] = {
    "pans left": ("the camera pans left", "the camera moves left", "pan left"),
    "pans right": ("the camera pans right", "the camera moves right", "pan right"),
    "pans up": ("the camera pans up", "the camera moves up", "the camera tilts up"),
    "pans down": ("the camera pans down", "the camera moves down", "the camera tilts down"),
    "zooms in": ("the camera zooms in", "zoom in", "the camera moves closer"),
    "zooms out": ("the camera zooms out", "zoom out", "the camera moves away"),
    "is still": ("the camera is still", "nothing moves", "a still picture", ""),
}
"""What people say for each motion of the camera."""


def pick(options: tuple[str, ...], generator: torch.Generator, first: float = 0.0) -> str:
    """Draw one of the options; the first one with a probability of at least `first`."""
    if first and float(torch.rand((), generator=generator)) < first:
        return options[0]
    return options[int(torch.randint(len(options), (), generator=generator))]


def noun_phrase(colour: str, noun: str, article: str = "a") -> str:
    """`("orange", "ball")` -> `"an orange ball"`; without a colour, `"a ball"`."""
    words = f"{colour} {noun}".strip()
    return f"{'an' if article == 'a' and words[0] in 'aeiou' else article} {words}"


def words() -> list[str]:
    """Return every word that a caption can hold."""
    found = {"a", "an", "the", "and", "while", "it", "nothing", "moves"}
    for text in (*COLOURS, *SHAPES, *MOTIONS, *GENERIC_SHAPES):
        found.update(text.split())
    for table in (NOUNS, VERBS, SPEEDS, CAMERA):
        for options in table.values():
            for text in options:
                found.update(text.split())
    return sorted(found)
