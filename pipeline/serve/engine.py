"""The engine: a packaged model, loaded and ready to animate. All that the service knows of the pipeline."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import InputError, ModelError
from ..machine import default_device
from ..media.video import Clip
from ..model.prompts import PromptLength

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

INFO_FILE = "animator.json"
PROGRAMS_FOLDER = "programs"
"""Of a package: programs compiled ahead of time, where its runtime is aot."""

StepListener = Callable[[int, int], None]
"""Called with (done, in all) after each evaluation of the U-Net in all its branches, which is a step for most solvers;
an exception that it raises stops the work."""


@dataclass(frozen=True)
class ModelInfo:
    """What `animator.json` says of a packaged model.

    Attributes:
        teacher: name or path of the checkpoint it was made from.
        family: teacher family of the U-Net.
        steps, passes: of one animation; passes is evaluations times guidance branches.
        guidance_scale, image_guidance_scale: as sampled with; None where there is no such branch.
        guidance_distilled: whether guidance is part of the weights (then one pass a step).
        runtime: eager, torchscript, compile or aot.
        precision: of the weights.
        frames, least_frames, most_frames: of a clip, as the model was made for, and what is allowed.
        height, width: of a clip in pixels.
        fps: of a clip.
        guidance_range: least and most `guidance_scale` of a request, where the model is told it.
        controls: names of further request fields that this model understands.
        scheduler: class of the solver.
        threads: that PyTorch computes on where there is no GPU; None: as many as it takes by itself.
        evaluations: of the U-Net in each branch; more than steps for solvers such as Heun's. Left out: as many as
            steps.
        metrics: figures of `pipeline evaluate` when it was packaged.
        files: SHA-256 of each file beside `animator.json`, by path.
    """

    teacher: str
    family: str
    steps: int
    passes: int
    guidance_scale: float | None
    image_guidance_scale: float | None
    guidance_distilled: bool
    runtime: str
    precision: str
    frames: int
    least_frames: int
    most_frames: int
    height: int
    width: int
    fps: int
    controls: tuple[str, ...] = ()
    guidance_range: tuple[float, float] | None = None
    scheduler: str = ""
    threads: int | None = None
    metrics: dict[str, float | int | str | None] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    evaluations: int = 0

    def __post_init__(self) -> None:
        if not self.evaluations:
            object.__setattr__(self, "evaluations", self.steps)

    @property
    def branches(self) -> int:
        """Guidance branches, each a pass of every evaluation."""
        return self.passes // self.evaluations

    @property
    def sampling(self) -> str:
        """How passes come about: "32 steps x 3 guidance branches = 96 U-Net passes"."""
        times = "" if self.evaluations == self.steps else f" ({self.evaluations} evaluations)"
        return f"{self.steps} steps{times} x {self.branches} guidance branches = {self.passes} U-Net passes"

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> ModelInfo:
        """Read `animator.json` of a packaged model.

        Raises:
            ModelError: the file is missing or is not what it should be.
        """
        path = folder / INFO_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or not isinstance(content.get("files", {}), dict):
                raise TypeError("an object with an object `files` is expected")
            content["controls"] = tuple(content.get("controls", ()))
            if content.get("guidance_range") is not None:
                least, most = content["guidance_range"]
                content["guidance_range"] = float(least), float(most)
            if (count := content.get("threads")) is not None and not (type(count) is int and count >= 1):
                raise ValueError(f"threads: {count!r} is not a number of at least 1")
            return cls(**content)
        except FileNotFoundError as error:
            raise ModelError(
                f"{folder}: no {INFO_FILE}; package the model with `python -m pipeline package`"
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{path}: not a model description ({error})") from error


@dataclass(frozen=True)
class AnimationRequest:
    """What to make of a picture. None takes the model's own value; a seed left out is drawn."""

    prompt: str
    seed: int | None = None
    frames: int | None = None
    fps: int | None = None
    motion_scale: int | None = None
    guidance_scale: float | None = None


@dataclass(frozen=True)
class Animation:
    """A clip `(frames, height, width, 3)` of uint8, and how it came about.

    Attributes:
        prompt_length: how much of the prompt the text encoder read.
    """

    clip: Clip
    fps: int
    seed: int
    steps: int
    passes: int
    compute_s: float
    runtime: str = "eager"
    prompt_length: PromptLength = field(default_factory=lambda: PromptLength(0, 0))


class Animator:
    """A loaded model. One call at a time: the caller sees to that (it owns the one slot).

    Attributes:
        runtime: what the U-Net really runs on; it differs from `info.runtime` after a fallback.
        fallback: why it does, or None.
    """

    def __init__(self, pipe: ImageAnimationPipeline, info: ModelInfo, name: str) -> None:
        self.pipe, self.info, self.name = pipe, info, name
        self.runtime = "eager"
        self.fallback: str | None = None
        self._misses: Callable[[], int] = lambda: 0

    @classmethod
    def load(cls, folder: Path, name: str | None = None, device: str | None = None) -> Animator:
        """Load a packaged model after checking each file against its digest.

        What is the same at every step is computed once a request. A program that the package holds is
        used where it was made for this machine; otherwise PyTorch runs without it, slower, and `fallback`
        says why.

        Raises:
            ModelError: missing, damaged, changed since it was packaged, or of an unknown family.
        """
        from ..optimise.precision import dtypes_of
        from .store import verify

        folder = Path(folder)
        info = verify(folder)
        try:
            # In its own precision from the start: a detour over float32 would need twice the memory.
            dtypes = dtypes_of(folder, info.precision)
        except ValueError as error:
            raise ModelError(f"{folder}: {error}") from error
        pipe = load_pipeline(folder, dtype=dtypes).to(device or default_device())
        pipe.set_progress_bar_config(disable=True)
        animator = cls(pipe, info, name or folder.name)
        animator._speed_up(folder)
        return animator

    def _speed_up(self, folder: Path) -> None:
        from ..optimise.packaged import speed_up

        try:
            faster = speed_up(self.pipe, self.info.runtime, self.info.precision, folder / PROGRAMS_FOLDER)
        except ValueError as error:
            raise ModelError(f"{folder}: {error}") from error
        if faster.program is not None:
            program = faster.program
            self.runtime, self._misses = self.info.runtime, lambda: program.misses
        if faster.skipped:
            without = "it" if len(faster.skipped) == 1 else "them"
            self.fallback = f"{'; '.join(faster.skipped)}; the U-Net runs without {without}, slower"

    def check(self, request: AnimationRequest) -> None:
        """Refuse what the model cannot do, before any work.

        Raises:
            InputError: with the field and the limit.
        """
        info = self.info
        if request.frames is not None and not info.least_frames <= request.frames <= info.most_frames:
            limits = f"{info.least_frames} to {info.most_frames}"
            raise InputError(
                "frames", "out_of_range", f"{request.frames} is outside {limits}, which this model can make"
            )
        if request.fps is not None and not 1 <= request.fps <= 60:
            raise InputError("fps", "out_of_range", f"{request.fps} is outside 1 to 60")
        if request.seed is not None and not 0 <= request.seed < 2**32:
            raise InputError("seed", "out_of_range", f"{request.seed} is outside 0 to {2**32 - 1}")
        if request.motion_scale is not None:
            if "motion_scale" not in info.controls:
                raise InputError("motion_scale", "not_supported", f"{self.name} has no such control; leave it out")
            if not 0 <= request.motion_scale <= 8:
                raise InputError("motion_scale", "out_of_range", f"{request.motion_scale} is outside 0 to 8")
        if request.guidance_scale is not None:
            if info.guidance_range is None:
                raise InputError("guidance_scale", "not_supported", f"{self.name} has no such control; leave it out")
            least, most = info.guidance_range
            if not least <= request.guidance_scale <= most:
                limits = f"{request.guidance_scale:g} is outside {least:g} to {most:g}"
                raise InputError("guidance_scale", "out_of_range", limits)

    def animate(self, image: Image.Image, request: AnimationRequest, on_step: StepListener | None = None) -> Animation:
        """Animate a decoded RGB picture.

        Args:
            on_step: told of progress; what it raises stops the work at once and is passed on.

        Raises:
            InputError: as `check`.
            NotFiniteError: the model computed NaN or infinity.
        """
        self.check(request)
        info = self.info
        seed = int.from_bytes(os.urandom(4)) if request.seed is None else request.seed

        def after_step(_pipe: Any, step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
            if on_step is not None:
                on_step(step + 1, info.evaluations)
            return {}

        # Imported here, so that a server's supervisor reads `animator.json` without waiting for PyTorch.
        import torch

        from ..optimise.threads import threads

        controls: dict[str, Any] = {} if request.motion_scale is None else {"motion_scale": request.motion_scale}
        began, misses = time.perf_counter(), self._misses()
        count = info.threads if self.pipe.device.type == "cpu" else None
        # The posterior of published I2VGen-XL checkpoints is sampled with torch's global generator.
        with threads(count), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            frames = self.pipe(
                image,
                request.prompt,
                num_frames=request.frames,
                fps=None,  # the rate that the model was trained with; the file's own is the person's choice
                **controls,
                guidance_scale=request.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="np",
                callback_on_step_end=after_step,
            ).frames[0]
        clip = (np.asarray(frames) * 255).round().astype(np.uint8)
        return Animation(
            clip=clip,
            fps=request.fps or info.fps,
            seed=seed,
            steps=info.steps,
            passes=info.passes,
            compute_s=time.perf_counter() - began,
            runtime=self.runtime if self._misses() == misses else "eager",
            prompt_length=self.pipe.prompt_length(request.prompt),
        )

    def warm_up(self, on_step: StepListener | None = None) -> Animation:
        """Make one animation of a grey picture, so that the first person does not wait for it."""
        grey = Image.new("RGB", (self.info.width, self.info.height), (127, 127, 127))
        return self.animate(grey, AnimationRequest(prompt="", seed=0), on_step)


def load_pipeline(source: str | Path, **kwargs: Any) -> ImageAnimationPipeline:
    """Load a checkpoint from a folder, or from the hub where it is reached.

    Raises:
        ModelError: with what to do, on one line.
    """
    from ..model.animation import ImageAnimationPipeline

    folder = Path(source)
    local = folder.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1
    if local and not (folder / "model_index.json").is_file():
        raise ModelError(f"{source}: no model_index.json there; give a folder in diffusers format or a hub id")
    try:
        return ImageAnimationPipeline.from_pretrained(source, **kwargs)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error
    except Exception as error:  # libraries raise a dozen kinds here; each becomes one line for a person
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if local:
            raise ModelError(f"{source}: cannot be loaded: {reason}") from error
        raise ModelError(
            f"{source}: not a folder here, and the hub could not give it ({reason}). "
            "Check the name and the network, or download the checkpoint elsewhere and give its folder."
        ) from error
