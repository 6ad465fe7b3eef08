"""`animator.json`: what a packaged model is, and what a request to it may ask for. Needs no PyTorch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ModelError
from ..model.controls import Control

INFO_FILE = "animator.json"
PROGRAMS_FOLDER = "programs"
"""Of a package: programs compiled ahead of time, where its runtime is aot."""

Picture = TypeVar("Picture")

Size = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
"""Height and width in pixels."""


class MergedFile(BaseModel):
    """A file of weights that was merged into a packaged model.

    Attributes:
        component: network that it went into.
        file, sha256: its name and digest.
        scale: that its change was multiplied by.
        keys: weights that it changed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    component: str
    file: str
    sha256: str
    scale: float
    keys: int


class ModelInfo(BaseModel):
    """Content of `animator.json`.

    Attributes:
        version: of this format. Version 1 had one size, one precision and no lengths in steps; it is still read.
        teacher: name or path of the checkpoint that the model was made from.
        family: name of the network's family.
        steps, passes: of one animation; passes is evaluations times guidance branches.
        evaluations: calls of the network in each branch; more than steps for solvers such as Heun's.
        guidance_scale, image_guidance_scale: scales that clips are sampled with; None where there is no such branch.
        guidance_distilled: whether guidance is part of the weights (then one pass a step).
        runtime: eager, torchscript, compile or aot.
        optimisations: further changes that the server makes, by name (`pipeline.optimise.named`).
        precision: of the weights, by component; "default" is that of all others.
        frames, least_frames, most_frames: of a clip: as the model was made for, and what is allowed.
        frame_step: k where a clip has k * n + 1 frames.
        sizes: height and width that a clip may have; the first is the default's. A picture takes the one that is
            nearest to its shape.
        fps: frames per second of a clip.
        controls: further numbers that a request may choose.
        takes_prompt: whether the model reads a prompt.
        takes_negative_prompt: whether a guidance branch reads a negative one.
        takes_last_image, needs_last_image: whether a clip can, or has to, be given the picture that it ends with.
        most_steps: steps that a request may choose at most; None where it cannot choose.
        scheduler: class of the solver.
        shift: of the noise levels of flow matching; None where there is none, or where it depends on a clip's size.
        merged: files that were merged into the weights.
        networks: names of the folders whose networks stand in place of the checkpoint's, by component.
        threads: number of PyTorch's threads where there is no GPU; None: as many as it takes by itself.
        metrics: figures of `pipeline evaluate` when it was packaged.
        files: SHA-256 of each file beside `animator.json`, by path.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(default=2, ge=1, le=2)
    teacher: str
    family: str
    steps: int = Field(ge=1)
    evaluations: int = Field(ge=1)
    passes: int = Field(ge=1)
    guidance_scale: float | None
    image_guidance_scale: float | None
    guidance_distilled: bool
    runtime: str
    optimisations: tuple[str, ...] = ()
    precision: dict[str, str]
    frames: int = Field(ge=1)
    least_frames: int = Field(ge=1)
    most_frames: int = Field(ge=1)
    frame_step: int = Field(default=1, ge=1)
    sizes: tuple[Size, ...] = Field(min_length=1)
    fps: int = Field(ge=1)
    controls: dict[str, Control] = {}
    takes_prompt: bool = True
    takes_negative_prompt: bool = False
    takes_last_image: bool = False
    needs_last_image: bool = False
    most_steps: int | None = None
    scheduler: str = ""
    shift: float | None = None
    merged: tuple[MergedFile, ...] = ()
    networks: dict[str, str] = {}
    threads: int | None = Field(default=None, ge=1)
    metrics: dict[str, float | int | str | None] = {}
    files: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        content = dict(content)
        content.setdefault("evaluations", content.get("steps"))
        if "sizes" not in content and {"height", "width"} <= content.keys():
            content["sizes"] = [(content.pop("height"), content.pop("width"))]
        if isinstance(content.get("precision"), str):
            content["precision"] = {"default": content["precision"]}
        limits = content.pop("guidance_range", None)
        if isinstance(content.get("controls"), (list, tuple)):
            known = {"motion_scale": Control(0, 8, 0, whole=True)}
            content["controls"] = {name: known[name] for name in content["controls"] if name in known}
        if limits is not None:
            about = "how much the prompt counts"
            told = Control(limits[0], limits[1], content.get("guidance_scale"), about=about)
            content["controls"] = {**content.get("controls", {}), "guidance_scale": told}
        return content

    @property
    def height(self) -> int:
        """Height of a clip in pixels, where a request says nothing."""
        return self.sizes[0][0]

    @property
    def width(self) -> int:
        """Width of a clip in pixels, where a request says nothing."""
        return self.sizes[0][1]

    @property
    def dtype(self) -> str:
        """Precision of the network."""
        return self.precision["default"]

    @property
    def branches(self) -> int:
        """Guidance branches, each a pass of every evaluation."""
        return self.passes // self.evaluations

    @property
    def sampling(self) -> str:
        """How passes come about: "40 steps x 2 guidance branches = 80 passes"."""
        times = "" if self.evaluations == self.steps else f" ({self.evaluations} evaluations)"
        return f"{self.steps} steps{times} x {self.branches} guidance branches = {self.passes} passes"

    def ending(self, picture: Picture) -> Picture | None:
        """Return what a clip ends with where nobody says: its picture, of a model that makes none without."""
        return picture if self.needs_last_image else None

    def size_for(self, width: int, height: int) -> Size:
        """Return the size whose shape is nearest to a picture's; the first of several that are as near."""
        return min(self.sizes, key=lambda size: abs(math.log(size[1] / size[0]) - math.log(width / height)))

    def changed(self, **changes: Any) -> Self:
        """Return the same with other values, checked."""
        return self.model_validate({**self.model_dump(), **changes})

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> ModelInfo:
        """Read `animator.json` of a packaged model.

        Raises:
            ModelError: the file is missing or is not what it should be.
        """
        path = folder / INFO_FILE
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise ModelError(
                f"{folder}: no {INFO_FILE}; package the model with `python -m pipeline package`"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "content"
            raise ModelError(f"{path}: not a model description ({where}: {first['msg']})") from error
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: not a model description ({error})") from error
