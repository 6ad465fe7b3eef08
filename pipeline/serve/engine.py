"""The engine: a packaged model, loaded and ready to animate. All that the service knows of the pipeline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import ModelError, first_line
from ..machine import default_device
from ..media.video import Clip
from ..model.prompts import PromptLength
from . import request as requests
from .manifest import PROGRAMS_FOLDER, ModelInfo
from .request import AnimationRequest

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline
    from ..model.prompts import Placement

StepListener = Callable[[int, int], None]
"""Called with (done, in all) after each evaluation of the network in all its branches, which is a step for most
solvers; an exception that it raises stops the work."""


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
        runtime: what the network really runs on; it differs from `info.runtime` after a fallback.
        fallback: why it does, or None.
    """

    def __init__(self, pipe: ImageAnimationPipeline, info: ModelInfo, name: str) -> None:
        self.pipe, self.info, self.name = pipe, info, name
        self.runtime = "eager"
        self.fallback: str | None = None
        self._misses: Callable[[], int] = lambda: 0

    @classmethod
    def load(
        cls, folder: Path, name: str | None = None, device: str | None = None, text_encoder: Placement = "resident"
    ) -> Animator:
        """Load a packaged model after checking each file against its digest.

        What is the same at every step is computed once a request. A program that the package holds is
        used where it was made for this machine; otherwise PyTorch runs without it, slower, and `fallback`
        says why.

        Args:
            text_encoder: where it waits between requests (`pipeline.model.prompts`).

        Raises:
            ModelError: missing, damaged, changed since it was packaged, or of an unknown family.
        """
        from ..optimise.named import saves_memory
        from ..optimise.packaged import save_memory
        from ..optimise.precision import dtype_of, dtypes_of
        from .store import verify

        folder = Path(folder)
        info = verify(folder)
        try:
            # In its own precision from the start: a detour over float32 would need twice the memory.
            own = {name: dtype_of(kind) for name, kind in info.precision.items()}
            dtypes = {**dtypes_of(folder, info.dtype), **own}
            slim = saves_memory(info.optimisations)
        except ValueError as error:
            raise ModelError(f"{folder}: {error}") from error
        target = device or default_device()
        pipe = load_pipeline(folder, "cpu" if slim else target, dtype=dtypes)
        skipped = save_memory(pipe, info.optimisations, target) if slim else []
        pipe.text_encoding.placement = text_encoder
        if text_encoder == "offload" and info.takes_prompt:
            pipe.text_encoder.to("cpu")
        pipe.set_progress_bar_config(disable=True)
        animator = cls(pipe, info, name or folder.name)
        animator._speed_up(folder, skipped)
        return animator

    def _speed_up(self, folder: Path, skipped: list[str]) -> None:
        from ..optimise.packaged import speed_up

        try:
            faster = speed_up(self.pipe, self.info.runtime, folder / PROGRAMS_FOLDER, self.info.optimisations)
        except ValueError as error:
            raise ModelError(f"{folder}: {error}") from error
        if faster.programs:
            self.runtime, self._misses = self.info.runtime, lambda: sum(one.misses for one in faster.programs)
        if reasons := [*skipped, *faster.skipped]:
            without = "it" if len(reasons) == 1 else "them"
            self.fallback = f"{'; '.join(reasons)}; the network runs without {without}, slower"

    def check(self, request: AnimationRequest, *, last_image: bool = False) -> None:
        """Refuse what the model cannot do, before any work, by an `InputError` with the field and the limit."""
        requests.check(request, self.info, self.name, last_image=last_image)

    def animate(
        self,
        image: Image.Image,
        request: AnimationRequest,
        on_step: StepListener | None = None,
        last_image: Image.Image | None = None,
    ) -> Animation:
        """Animate a decoded RGB picture.

        Args:
            on_step: told of progress; what it raises stops the work at once and is passed on.
            last_image: that the clip ends with, where the model has it.

        Raises:
            InputError: as `check`.
            NotFiniteError: the model computed NaN or infinity.
        """
        self.check(request, last_image=last_image is not None)
        info, pipe = self.info, self.pipe
        seed = int.from_bytes(os.urandom(4)) if request.seed is None else request.seed
        total = self.evaluations(request)

        def after_step(_pipe: Any, step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
            if on_step is not None:
                on_step(step + 1, total)
            return {}

        # Imported here, so that a server's supervisor reads `animator.json` without waiting for PyTorch.
        import torch

        from ..machine import threads

        began, misses = time.perf_counter(), self._misses()
        count = info.threads if pipe.device.type == "cpu" else None
        # The posterior of published I2VGen-XL checkpoints is sampled with torch's global generator.
        with threads(count), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            frames = pipe(
                image,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="pt",
                callback_on_step_end=after_step,
                **self._arguments(image, request, last_image),
            ).frames[0]
        # Bytes are made on the device: a quarter of what float32 would move from there.
        clip = (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return Animation(
            clip=clip,
            fps=request.fps or info.fps,
            seed=seed,
            steps=request.steps or info.steps,
            passes=total * self._branches(request),
            compute_s=time.perf_counter() - began,
            runtime=self.runtime if self._misses() == misses else "eager",
            prompt_length=pipe.prompt_length(request.prompt),
        )

    def evaluations(self, request: AnimationRequest) -> int:
        """Return how many times a request calls the network in each branch."""
        if request.steps in {None, self.info.steps}:
            return self.info.evaluations
        from ..model.sampling import evaluations

        return evaluations(self.pipe.scheduler, request.steps)

    def _branches(self, request: AnimationRequest) -> int:
        """Return how many guidance branches a request takes: a scale of its own can do without some."""
        scale = request.controls.get("guidance_scale")
        if scale is None or self.info.guidance_distilled:
            return self.info.branches
        from ..model.guidance import Guidance

        return Guidance(scale, self.pipe.config.image_guidance_scale).passes

    def _arguments(
        self, image: Image.Image, request: AnimationRequest, last_image: Image.Image | None
    ) -> dict[str, Any]:
        """Return what the pipeline is called with beside picture and seed."""
        info = self.info
        size = request.size
        width, height = map(int, size.split("x")) if size else reversed(info.size_for(*image.size))
        given: dict[str, Any] = {
            "height": height,
            "width": width,
            "num_frames": request.frames,
            "num_inference_steps": request.steps,
            # The rate of the file is the person's choice; the network is told the one that it was trained with.
            "fps": None,
            "last_image": last_image,
            **request.controls,
        }
        if info.takes_prompt:
            given |= {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        return given

    def warm_up(self, on_step: StepListener | None = None) -> Animation:
        """Make one animation of a grey picture, so that the first person does not wait for it."""
        grey = Image.new("RGB", (self.info.width, self.info.height), (127, 127, 127))
        last = grey if self.info.needs_last_image else None
        return self.animate(grey, AnimationRequest(seed=0), on_step, last)


def load_pipeline(source: str | Path, device: str | None = None, **kwargs: Any) -> ImageAnimationPipeline:
    """Load a checkpoint from a folder, or from the hub where it is reached.

    Args:
        device: that the weights are read to, each once; None: the processor's memory.
        kwargs: of `ImageAnimationPipeline.from_pretrained`, such as `dtype`.

    Raises:
        ModelError: with what to do, on one line.
    """
    from ..model.animation import ImageAnimationPipeline

    folder = Path(source)
    local = folder.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1
    if local and not (folder / "model_index.json").is_file():
        raise ModelError(f"{source}: no model_index.json there; give a folder in diffusers format or a hub id")
    try:
        pipe = ImageAnimationPipeline.from_pretrained(source, device=device, **kwargs)
        return pipe if device is None else pipe.to(device)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error
    except Exception as error:  # libraries raise a dozen kinds here; each becomes one line for a person
        reason = first_line(error)
        if local:
            raise ModelError(f"{source}: cannot be loaded: {reason}") from error
        raise ModelError(
            f"{source}: not a folder here, and the hub could not give it ({reason}). "
            "Check the name and the network, or download the checkpoint elsewhere and give its folder."
        ) from error
