"""Pictures that no training of ours has seen: real photographs from a package, or a folder of one's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL.Image import Image

from ..errors import InputError, StillmotionError
from ..media import images

PHOTOGRAPHS = "photographs"
"""Stands for those of scikit-image, where a folder may be named."""

# Files that lie in scikit-image's wheel; its functions would download others. Captions are ours.
_PHOTOGRAPHS = {
    "astronaut.png": "an astronaut in an orange suit smiles and turns her head slowly, the flag behind her waves",
    "chelsea.png": "a tabby cat looks at the camera, blinks and moves its ears",
    "coffee.png": "steam rises from a cup of coffee on a wooden table, the camera moves slowly around it",
    "rocket.jpg": "a rocket lifts off at night, smoke and fire pour from its engines",
    "motorcycle_left.png": "the camera moves slowly past a motorcycle in a garage",
    "camera.png": "a man with a camera on a tripod bends down, his coat moves in the wind",
    "grass.png": "wind moves through the grass",
    "coins.png": "the camera moves slowly over old coins on a table",
}

# Pictures of one's own may be larger than what a server takes from anybody.
_LIMITS = images.PictureLimits(max_bytes=2**28)


@dataclass(frozen=True)
class Picture:
    """A picture to animate.

    Attributes:
        name: of its file.
        image: RGB, of any size.
        caption: what is to move.
    """

    name: str
    image: Image
    caption: str


def read_pictures(rows: Iterable[tuple[Path, str]]) -> list[Picture]:
    """Read pictures.

    Args:
        rows: file and caption of each.

    Raises:
        StillmotionError: a file is no picture, or damaged.
    """
    return [Picture(path.name, _read(path), caption) for path, caption in rows]


def photographs() -> list[tuple[Path, str]]:
    """Return file and caption of eight photographs that scikit-image brings in its wheel.

    Raises:
        StillmotionError: it is not installed.
    """
    found = find_spec("skimage")
    if found is None or found.origin is None:
        raise StillmotionError(
            f"--pictures {PHOTOGRAPHS}: takes those of scikit-image, which is not installed; pip install "
            "'stillmotion[judge]', or give a folder"
        )
    folder = Path(found.origin).parent / "data"
    return [(folder / name, caption) for name, caption in _PHOTOGRAPHS.items()]


def _read(path: Path) -> Image:
    try:
        return images.decode(path, _LIMITS)
    except (InputError, OSError) as error:
        raise StillmotionError(f"{path}: not a picture that can be read ({error})") from error
