"""What keeps an image from being built or started: one line, with what to do."""

from __future__ import annotations

from pipeline.errors import StillmotionError


class ContainerError(StillmotionError):
    """Nothing was built, or what was built does not do what it should."""
