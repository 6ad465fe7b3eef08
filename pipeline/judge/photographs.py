"""Pictures that no training of ours has seen: real photographs from a package, or a folder of one's own."""

from __future__ import annotations

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


def held_out(source: str | Path, most: int | None = None) -> list[Picture]:
    """Return pictures with captions, in the order of their names.

    Args:
        source: a folder of pictures, each with a text beside it (`cat.png`, `cat.txt`) or named in a metadata.csv, as
            `pipeline distill` reads it; or "photographs" for those of scikit-image.
        most: how many at most.

    Raises:
        StillmotionError: the folder has none, a file is damaged or has no caption, or scikit-image is not installed.
    """
    rows = _packaged() if str(source) == PHOTOGRAPHS and not Path(source).is_dir() else _of_folder(Path(source))
    return [Picture(path.name, _read(path), caption) for path, caption in rows[:most]]


def _packaged() -> list[tuple[Path, str]]:
    found = find_spec("skimage")
    if found is None or found.origin is None:
        raise StillmotionError(
            "--pictures photographs: takes those of scikit-image, which is not installed; pip install "
            "'stillmotion[judge]', or give a folder"
        )
    folder = Path(found.origin).parent / "data"
    return [(folder / name, caption) for name, caption in _PHOTOGRAPHS.items()]


def _of_folder(folder: Path) -> list[tuple[Path, str]]:
    from ..distill.folders import CaptionedSource, open_folder

    # Shape and batch are of training; the files and captions are what counts here.
    source = open_folder(folder, frames=1, height=8, width=8, batch=1)
    assert isinstance(source, CaptionedSource)
    if source.has_clips:
        raise StillmotionError(f"{folder}: holds videos; a folder to judge with holds pictures")
    return sorted(source.rows)


def _read(path: Path) -> Image:
    try:
        return images.decode(path, _LIMITS)
    except (InputError, OSError) as error:
        raise StillmotionError(f"{path}: not a picture that can be read ({error})") from error
