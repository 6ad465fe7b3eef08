"""Where the time of a whole request goes, part by part, from picture and prompt to the file of the clip."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..denoiser import Denoiser, Predict
from ..families import Conditioning
from .timing import wait

if TYPE_CHECKING:
    from ..animation import ImageAnimationPipeline

Branches = Literal[1, 2, 3]

_SCALES: dict[int, dict[str, Any]] = {
    1: {"guidance_scale": 1.0, "image_guidance_scale": 1.0},
    2: {"guidance_scale": 9.0, "image_guidance_scale": None},
    3: {"guidance_scale": 9.0, "image_guidance_scale": 1.5},
}
"""Guidance scales that give so many branches; their values do not change the work."""


@dataclass(frozen=True)
class RequestAccount:
    """Seconds of one request. The parts do not overlap, and with `remainder_s` they add up to `total_s`.

    Attributes:
        steps, branches: of the denoising; a step is one U-Net pass of all branches.
        text_encode_s: tokens and text encoder, both texts.
        picture_prepare_s: cropping and scaling the picture, and laying its latents out over the frames.
        image_encode_s: image encoder.
        vae_encode_s: picture to latents.
        prepare_s: what is computed once a request for all steps (`prepare_once`).
        unet_s, step_s: all passes, and the median of one.
        solver_s: guidance and the solver's step, all steps together.
        vae_decode_s: latents to frames.
        to_cpu_s: frames to the processor's memory, in [0, 1].
        to_uint8_s: rounding to bytes.
        video_encode_s: frames to an MP4 file; None where it cannot be made here, with the reason in `skipped`.
        remainder_s: of the total, in none of the parts.
        total_s: with the device waited for at the bounds of each part.
        request_s: the same request without that, video left out: what a person waits for.
        peak_memory_mb: of that request.
    """

    steps: int
    branches: int
    dtype: str
    text_encode_s: float
    picture_prepare_s: float
    image_encode_s: float
    vae_encode_s: float
    prepare_s: float
    unet_s: float
    step_s: float
    solver_s: float
    vae_decode_s: float
    to_cpu_s: float
    to_uint8_s: float
    video_encode_s: float | None
    remainder_s: float
    total_s: float
    request_s: float
    peak_memory_mb: float | None
    skipped: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


PARTS = (
    "text_encode_s",
    "picture_prepare_s",
    "image_encode_s",
    "vae_encode_s",
    "prepare_s",
    "unet_s",
    "solver_s",
    "vae_decode_s",
    "to_cpu_s",
    "to_uint8_s",
    "video_encode_s",
    "remainder_s",
)


class _Clock:
    """Books each moment to one part: the innermost that is under way, or the one that lies below all.

    Attributes:
        below: what is booked where no part is under way.
        steps: seconds of each U-Net pass.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.steps: list[float] = []
        self.below = "remainder_s"
        self._under_way: list[str] = []
        self.began = self._since = time.perf_counter()

    def book(self) -> None:
        """Book the time since the last call, once the device has done its work."""
        wait(self.device)
        now = time.perf_counter()
        self.seconds[self._under_way[-1] if self._under_way else self.below] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.book()
        self._under_way.append(name)
        try:
            yield
        finally:
            self.book()
            self._under_way.pop()

    @property
    def total(self) -> float:
        return self._since - self.began


class _TimedDenoiser:
    """Tells the clock of preparing and of each pass."""

    def __init__(self, inner: Denoiser, clock: _Clock) -> None:
        self.inner, self.clock = inner, clock

    def start(self, conditioning: Conditioning) -> Predict:
        clock = self.clock
        with clock.part("prepare_s"):
            predict = self.inner.start(conditioning)
        clock.book()
        clock.below = "solver_s"  # until the frames are decoded, all that is no pass

        def timed(latents: Tensor, timestep: Tensor) -> Tensor:
            before = clock.seconds["unet_s"]
            with clock.part("unet_s"):
                predicted = predict(latents, timestep)
            clock.steps.append(clock.seconds["unet_s"] - before)
            return predicted

        return timed


def _hook(stack: ExitStack, owner: Any, method: str, clock: _Clock, part: str) -> None:
    """Time a method of one object, until the stack is closed."""
    inner: Callable[..., Any] = getattr(owner, method)

    def timed(*arguments: Any, **options: Any) -> Any:
        if part == "vae_decode_s":
            clock.book()
            clock.below = "remainder_s"
        with clock.part(part):
            return inner(*arguments, **options)

    setattr(owner, method, timed)
    stack.callback(delattr, owner, method)


def _watch(pipe: ImageAnimationPipeline, clock: _Clock) -> ExitStack:
    """Time a pipeline's parts; closing the stack takes the clocks out."""
    with ExitStack() as stack:
        for owner, method, part in (
            (pipe, "encode_prompt", "text_encode_s"),
            (pipe.family, "condition_image", "picture_prepare_s"),
            (pipe.image_encoder, "forward", "image_encode_s"),
            (pipe, "encode_pixels", "vae_encode_s"),
            (pipe, "decode_latents", "vae_decode_s"),
            (pipe.video_processor, "postprocess_video", "to_cpu_s"),
        ):
            if owner is not None:
                _hook(stack, owner, method, clock, part)
        denoiser = pipe.denoiser

        def put_back() -> None:
            pipe.denoiser = denoiser

        pipe.denoiser = _TimedDenoiser(denoiser, clock)
        stack.callback(put_back)
        return stack.pop_all()


def account_request(
    pipe: ImageAnimationPipeline,
    steps: int | None = None,
    branches: Branches = 3,
    decode_chunk_size: int | None = 1,
    warm_up: bool = True,
) -> RequestAccount:
    """Account for one request of the default shape, eager or with whatever changes are in place.

    Args:
        pipe: a pipeline whose default arguments are used, but for steps and guidance; left as it was.
        steps: None takes the checkpoint's.
        branches: guidance branches of a step: a teacher has 3, a student distilled with guidance 1.
        warm_up: make a request of two steps before, so that nothing is built or loaded in the timed ones.
    """
    from ..machine import PeakMemory

    count = pipe.config.num_inference_steps if steps is None else steps
    if warm_up:
        _request(pipe, min(2, count), branches, decode_chunk_size)
    with PeakMemory() as memory:
        began = time.perf_counter()
        _bytes_of(_request(pipe, count, branches, decode_chunk_size))
        request_s = time.perf_counter() - began
    clock = _Clock(pipe.device)
    with _watch(pipe, clock):
        frames = _request(pipe, count, branches, decode_chunk_size)
    with clock.part("to_uint8_s"):
        clip = _bytes_of(frames)
    skipped: dict[str, str] = {}
    with clock.part("video_encode_s"):
        try:
            from ..video import encode

            encode(clip, pipe.config.fps, "mp4")
        except (ImportError, AttributeError, OSError, ValueError) as error:
            skipped["video_encode_s"] = str(error).splitlines()[0]
    seconds: dict[str, float | None] = {name: round(value, 6) for name, value in clock.seconds.items()}
    total = clock.total
    if skipped:  # what the attempt took is no part of a request
        total -= clock.seconds["video_encode_s"]
        seconds["video_encode_s"] = None
    return RequestAccount(
        steps=count,
        branches=branches,
        dtype=str(pipe.unet.dtype).removeprefix("torch."),
        step_s=round(statistics.median(clock.steps), 6),
        total_s=round(total, 6),
        request_s=round(request_s, 6),
        peak_memory_mb=None if memory.peak_mb is None else round(memory.peak_mb, 1),
        skipped=skipped,
        **seconds,  # type: ignore[arg-type]  # only the video's may be None
    )


def _request(pipe: ImageAnimationPipeline, steps: int, branches: int, decode_chunk_size: int | None) -> np.ndarray:
    """One request of fixed picture, prompt and seed; frames `(frames, height, width, 3)` in [0, 1]."""
    height, width = pipe.default_size
    rows = np.linspace(0, 255, height, dtype=np.uint8)[:, None, None]
    picture = Image.fromarray(np.broadcast_to(rows, (height, width, 3)).copy())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        frames = pipe(
            picture,
            "a red circle moves right",
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
            decode_chunk_size=decode_chunk_size,
            output_type="np",
            **_SCALES[branches],
        ).frames[0]
    return np.asarray(frames)


def _bytes_of(frames: np.ndarray) -> np.ndarray:
    return (frames * 255).round().astype(np.uint8)


def markdown(accounts: Sequence[RequestAccount]) -> str:
    """A table: a row a part, a column a request; seconds, and their share of the total."""
    lines = [
        "| part | " + " | ".join(f"{a.steps} x {a.branches}, {a.dtype}" for a in accounts) + " |",
        "|---" + "|--:" * len(accounts) + "|",
    ]
    for name in (*PARTS, "total_s", "request_s", "step_s"):
        cells = []
        for account in accounts:
            value = getattr(account, name)
            share = "" if name not in PARTS or value is None else f" ({100 * value / account.total_s:.1f} %)"
            cells.append("–" if value is None else f"{value:.4f} s{share}")
        lines.append(f"| {name.removesuffix('_s').replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
