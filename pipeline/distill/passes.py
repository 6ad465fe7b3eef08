"""Teacher and student as the algorithm calls them: what they are told of a batch, and their passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image, fromarray
from torch import Tensor, nn

from ..model.families import Cond, Request, cast_cond, guidance_embedding, guidance_width, stack
from ..model.families.guided import GUIDANCE_WIDTH
from ..model.guidance import AnyGuidance, ClipGuidance, Guidance
from .algorithm import Predict
from .data import Examples

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline


def draw_scales(limits: tuple[float, float], count: int, random: torch.Generator) -> Tensor:
    """Return scales of the caption, `(count,)`, each as likely as any other (Meng et al. 2023, section 3.1)."""
    least, most = limits
    return least + (most - least) * torch.rand(count, generator=random)


@torch.no_grad()
def conditions(
    teacher: ImageAnimationPipeline,
    examples: Examples,
    guidance: AnyGuidance,
    random: torch.Generator,
    scales: Tensor | None = None,
) -> tuple[Cond, Cond]:
    """Return what the teacher is given (all branches of `guidance`, stacked) and the student (the full one).

    Args:
        scales: `(batch,)`, that the student is told; a teacher that is a guided student is told them too.
    """
    encoded, count = examples.encoded, len(examples.captions)
    if encoded is None or encoded.pictures is None:
        ends = last_pictures(examples) if teacher.family.last_image(teacher.parts) == "always" else None
        picture = encode_pictures(teacher, examples.pictures, random, ends)
    else:
        torch.randint(2**62, (), generator=random)  # as encoding draws it, so that the noise is the same
        picture = {name: tensor.to(teacher.parts.device) for name, tensor in encoded.pictures.items()}
    texts = examples.captions if encoded is None else encoded.texts
    negative = [teacher.family.negative_prompt] * count if encoded is None else encoded.negative
    branches = dict.fromkeys([*guidance.branches, "full"])
    made = teacher.conditions(texts, negative, picture, list(branches), teacher.default_clip_skip)
    of_teacher, of_student = (stack([made[name] for name in names]) for names in (guidance.branches, ("full",)))
    if scales is None:
        return of_teacher, of_student
    told = guidance_embedding(scales.to(teacher.parts.device), guidance_width(teacher.network) or GUIDANCE_WIDTH)
    if "guidance" in of_teacher:
        of_teacher = {**of_teacher, "guidance": told.to(teacher.parts.dtype)}
    return of_teacher, {**of_student, "guidance": told}


@torch.no_grad()
def encode_pictures(
    teacher: ImageAnimationPipeline,
    pictures: Sequence[Image],
    random: torch.Generator,
    last_images: Sequence[Image] | None = None,
) -> Cond:
    """Return what the network is given of pictures, frame rate and controls, as a call by default gives it."""
    request = _request(teacher, pictures, last_images, random)
    # I2VGen-XL as published draws from its posterior with torch's global generator.
    with seeded(int(torch.randint(2**62, (), generator=random)), teacher.parts.device):
        return teacher.family.encode_picture(teacher.parts, request)


def _request(
    teacher: ImageAnimationPipeline,
    pictures: Sequence[Image] = (),
    last_images: Sequence[Image] | None = None,
    random: torch.Generator | None = None,
) -> Request:
    """Return a request for pictures as a call by default makes it."""
    config, (height, width) = teacher.config, teacher.default_size
    return Request(
        pictures,
        config.num_frames,
        height,
        width,
        config.fps,
        last_images=last_images,
        generator=random,
        controls={name: one.default for name, one in teacher.family.controls.items() if one.default is not None},
    )


def own_guidance(teacher: ImageAnimationPipeline) -> AnyGuidance:
    """Return how a teacher is guided by default; where its scale differs between frames, it does so here."""
    guidance = Guidance(teacher.config.guidance_scale, teacher.config.image_guidance_scale)
    scale = teacher.family.guide(guidance.text, teacher.family.networks[0], _request(teacher))
    return ClipGuidance(scale, guidance.image) if isinstance(scale, Tensor) else guidance


def last_pictures(examples: Examples) -> list[Image]:
    """Return the pictures that the examples' clips end with."""
    assert examples.clips is not None
    ends = (examples.clips[:, :, -1] * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [fromarray(end) for end in ends]


class Networks(nn.Module):
    """A family's networks as one module: each clip of a batch goes through the one for its noise level.

    Args:
        pipe: whose family and noise levels they are.
        networks: by name of the component.

    Attributes:
        called: returns which networks are called, from the names of those that a batch needs. One that it does not need
            computes a clip that counts for nothing.
    """

    def __init__(self, pipe: ImageAnimationPipeline, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.called: Callable[[set[str]], set[str]] = lambda names: names
        self._family, self._parts = pipe.family, pipe.parts
        self.networks = nn.ModuleDict(networks)
        # What FSDP spreads block by block, by class; accelerate looks for it here.
        self._no_split_modules = sorted({name for network in networks.values() for name in block_classes(network)})

    def forward(self, z: Tensor, timesteps: Tensor, cond: Cond) -> Tensor:
        """Return predictions for z `(batch, channels, frames, height, width)` at timesteps `(batch,)`."""
        by_clip = [self._family.network_at(self._parts, t) for t in timesteps]
        called = self.called(set(by_clip))
        if len(called) == 1:
            return self._family.predict(self.networks[by_clip[0]], z, timesteps, cond)
        predicted = torch.zeros_like(z)
        for name in sorted(called):
            own = [k for k, one in enumerate(by_clip) if one == name]
            rows = torch.tensor(own or [0], device=z.device)
            some = {key: tensor[rows] for key, tensor in cond.items()}
            output = self._family.predict(self.networks[name], z[rows], timesteps[rows], some)
            predicted = predicted.to(output.dtype)
            # A sum of nothing is zero, and its gradient passes through the network all the same.
            predicted = predicted.index_put((rows,), output) if own else predicted + output[:0].sum()
        return predicted


def block_classes(network: nn.Module) -> list[str]:
    """Return the classes of a network's blocks, by name: a U-Net's levels, or a transformer's repeated blocks."""
    parts: Any = network
    if hasattr(network, "down_blocks"):
        return [type(block).__name__ for block in (*parts.down_blocks, parts.mid_block, *parts.up_blocks)]
    return list(getattr(network, "_repeated_blocks", None) or getattr(network, "_no_split_modules", None) or ())


def networks_of(pipe: ImageAnimationPipeline) -> dict[str, nn.Module]:
    """Return the networks of a checkpoint by name; most have one."""
    found = {name: getattr(pipe, name, None) for name in pipe.family.networks}
    return {name: network for name, network in found.items() if network is not None}


def teacher_pass(
    teacher: ImageAnimationPipeline,
    cond: Cond,
    guidance: AnyGuidance,
    networks: nn.Module | None = None,
    alone: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Predict:
    """Return the teacher with all its branches combined.

    Args:
        networks: that it computes with, of the form of `Networks`; None: its own.
        alone: inside, networks that it shares with a student are the teacher's.
    """
    networks, dtype = networks or Networks(teacher, networks_of(teacher)), teacher.parts.dtype

    def predict(z: Tensor, timesteps: Tensor, rows: Tensor | None) -> Tensor:
        assert rows is None
        stacked, times = torch.cat([z] * guidance.passes), timesteps.repeat(guidance.passes)
        with alone():
            combined = guidance.combine(networks(stacked.to(dtype), times, cond).float())
        return _still_where_held(teacher, combined, {name: tensor[: len(z)] for name, tensor in cond.items()})

    return predict


def student_pass(
    teacher: ImageAnimationPipeline, student: nn.Module, cond: Cond, dtype: torch.dtype = torch.float32
) -> Predict:
    """Return a student, of the form of `Networks`, in the precision that it is trained in."""
    cond = cast_cond(cond, dtype)

    def predict(z: Tensor, timesteps: Tensor, rows: Tensor | None) -> Tensor:
        seen = cond if rows is None else {name: tensor[rows] for name, tensor in cond.items()}
        return _still_where_held(teacher, student(z.to(dtype), timesteps, seen).float(), seen)

    return predict


def _still_where_held(teacher: ImageAnimationPipeline, predicted: Tensor, cond: Cond) -> Tensor:
    """Return a prediction that is zero in frames that are given: a flow of zero leaves them as they are."""
    if not teacher.family.flow:
        return predicted
    nothing = {name: torch.zeros_like(tensor) if name == "picture" else tensor for name, tensor in cond.items()}
    return teacher.family.hold(predicted, nothing)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generator begins at `seed` inside, and is left as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
