"""What a family is: all that the checkpoints of one kind do differently.

The denoising loop (`pipeline.model.sampling`) is the same for all families. A family says which components a
checkpoint has, what one guidance branch is given (a `Cond`), how the network is called, and how latents become frames.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, cast

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL.Image import Image
from torch import Tensor, nn

from ...media.images import centre_crop, to_tensor
from ..controls import Control as Control  # noqa: PLC0414  # families take it from here

Cond = Mapping[str, Tensor]
"""What the network is given in one guidance branch, by name; dimension 0 of every tensor is the batch."""

Generators = torch.Generator | list[torch.Generator] | None
"""One generator that draws for all clips, or one for each clip; None is torch's global one."""


def stack(branches: Sequence[Cond]) -> Cond:
    """Return the branches as one, one after the other along the batch."""
    return {name: torch.cat([branch[name] for branch in branches]) for name in branches[0]}


def cast_cond(cond: Cond, dtype: torch.dtype) -> Cond:
    """Return the same in another precision; whole numbers, such as a frame rate, stay whole."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in cond.items()}


def without_padding(hidden: Tensor, mask: Tensor) -> Cond:
    """Return hidden states `(batch, tokens, width)`, zeros where there is padding, and which tokens are none.

    Args:
        mask: `(batch, tokens)`, 0 where there is padding.
    """
    return {"text": hidden * mask[..., None].to(hidden.dtype), "text_mask": mask.bool()}


def of_padded(embeds: Tensor) -> Cond:
    """Return what `without_padding` did, from its hidden states alone."""
    return {"text": embeds, "text_mask": (embeds != 0).any(dim=-1)}


def check_widths(components: Mapping[str, Any], wanted: Mapping[str, int]) -> None:
    """Refuse encoders of another checkpoint, whose tokens the network cannot take.

    Args:
        wanted: numbers of a token, by the encoder's name.

    Raises:
        ValueError: names the encoder and both widths.
    """
    for name, width in wanted.items():
        if (found := components[name].config.hidden_size) != width:
            raise ValueError(
                f"{name}: its tokens have {found} numbers, and the network takes {width}; they are of two checkpoints"
            )


@dataclass(frozen=True)
class Defaults:
    """What a call takes where it says nothing; height and width are in pixels."""

    frames: int
    height: int
    width: int
    steps: int
    guidance_scale: float
    fps: int


@dataclass(frozen=True, eq=False)
class Parts:
    """A checkpoint's components, by name as attributes (None for one that it does not have), and where they compute.

    Attributes:
        options: settings of the checkpoint (`Family.options`).
        find_device: returns the device that the components compute on. diffusers looks at each module of each component
            for it, and most of what is asked of a family wants none.
        dtype: precision of the network.
    """

    components: Mapping[str, Any]
    options: Mapping[str, Any]
    find_device: Callable[[], torch.device]
    dtype: torch.dtype

    @cached_property
    def device(self) -> torch.device:
        """That the components compute on."""
        return self.find_device()

    def __getattr__(self, name: str) -> Any:
        try:
            return self.components[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True, eq=False)
class Request:
    """Pictures to animate, checked.

    Attributes:
        images: RGB pictures of any size, one for each clip.
        frames, height, width: of a clip, the last two in pixels.
        fps: frames per second that the network is told, where it is told them.
        last_images: pictures that the clips end with, of families that take them.
        generator: of the random numbers that encoding draws.
        controls: values of the family's controls.
    """

    images: Sequence[Image]
    frames: int
    height: int
    width: int
    fps: int
    last_images: Sequence[Image] | None = None
    generator: Generators = None
    controls: Mapping[str, float] = field(default_factory=dict)

    def repeated(self, times: int) -> Request:
        """Return the same with each picture several times, one after the other."""
        images, last = (
            [one for one in pictures or () for _ in range(times)] for pictures in (self.images, self.last_images)
        )
        return replace(self, images=images, last_images=last or None)

    def cropped(self) -> list[Image]:
        """Return the pictures at the clip's size."""
        return [centre_crop(image, self.width, self.height) for image in self.images]

    def cropped_last(self) -> list[Image]:
        """Return the pictures that the clips end with, at the clip's size; none where there are none."""
        return [centre_crop(image, self.width, self.height) for image in self.last_images or ()]


def pixels_of(images: Sequence[Image]) -> Tensor:
    """Return pictures of one size as `(batch, 3, height, width)`, float in [-1, 1]."""
    return torch.cat([to_tensor(image) for image in images])


class Family(ABC):
    """How the checkpoints of one kind are conditioned, called and decoded. Holds no state.

    Attributes:
        name: in `animator.json` and errors.
        pipeline_class: diffusers' own class, as `model_index.json` names it.
        components: names of the classes that each component may be of, by the component's name.
        optional: components that a checkpoint may leave out.
        options: settings of diffusers' own class, with their defaults, that are kept in `model_index.json`.
        own_options: names of options that diffusers' own class does not know.
        networks: names of the components that predict; one for most, one for each stage of the noise levels else.
        offload_order: order in which components are used, as diffusers wants it for offloading.
        defaults: of a call.
        small: the same for a network of a few million parameters, as tests and tries use it; None: as any other.
        text_tokens: tokens of a prompt that the network takes; None: as many as tokenizer and text encoder say.
        negative_prompt: default text of the branches that do not bear the prompt.
        controls: further numbers that a call may choose.
        least_blocks: how many times `size_step` a side is at least.
        takes_prompt: whether there is a text encoder; a prompt is refused otherwise.
        drops_picture: whether a branch without the picture makes sense, which three-branch guidance needs.
        stacks_branches: whether the network is called once for all branches, or once for each (less memory).
        noise_before_image: whether the noise is drawn before the picture is encoded (it decides what a seed gives).
        noise_by_frame: whether the noise is drawn frame by frame (which does, too).
        turns: whether clips may also be upright or square, with as many pixels.
        flow: whether the network predicts a flow and not noise, v or the sample.
        clip_skip: layers of the text encoder that published checkpoints leave out.
        skips_layers_of_negative: whether `clip_skip` holds for the negative prompt too.
        steps_by_frame: whether the scheduler is given frames as if they were clips (where noise of a step goes).
        float32_parts: components that stay in float32 when the network is run in half precision.
        licence: what a person has to know before serving or distilling, where it is more than attribution.
    """

    name: ClassVar[str]
    pipeline_class: ClassVar[str]
    components: ClassVar[Mapping[str, tuple[str, ...]]]
    optional: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[Mapping[str, Any]] = {}
    own_options: ClassVar[tuple[str, ...]] = ()
    networks: ClassVar[tuple[str, ...]] = ("transformer",)
    offload_order: ClassVar[str] = "text_encoder->image_encoder->transformer->vae"
    defaults: ClassVar[Defaults]
    small: ClassVar[Defaults | None] = None
    text_tokens: ClassVar[int | None] = None
    negative_prompt: ClassVar[str] = ""
    controls: ClassVar[Mapping[str, Control]] = {}
    least_blocks: ClassVar[int] = 1
    takes_prompt: ClassVar[bool] = True
    drops_picture: ClassVar[bool] = True
    stacks_branches: ClassVar[bool] = False
    noise_before_image: ClassVar[bool] = False
    noise_by_frame: ClassVar[bool] = False
    turns: ClassVar[bool] = False
    flow: ClassVar[bool] = False
    clip_skip: ClassVar[int | None] = None
    skips_layers_of_negative: ClassVar[bool] = True
    steps_by_frame: ClassVar[bool] = False
    float32_parts: ClassVar[tuple[str, ...]] = ()
    licence: ClassVar[str] = ""

    def assemble(self, components: dict[str, Any]) -> dict[str, Any]:
        """Return components as the family uses them, from those that a checkpoint has; some are made of two."""
        return components

    def check(self, components: Mapping[str, Any], options: Mapping[str, Any]) -> None:  # noqa: B027  # most need none
        """Refuse a checkpoint whose components do not go together, by a `ValueError` that names the component."""

    def defaults_of(self, parts: Parts) -> Defaults:
        """Return the defaults of a call to this checkpoint."""
        if self.small is None:
            return self.defaults
        weights = sum(parameter.numel() for parameter in getattr(parts, self.networks[0]).parameters())
        return self.small if weights < _SMALL_WEIGHTS else self.defaults

    def controls_of(self, parts: Parts) -> Mapping[str, Control]:
        """Return the controls that this checkpoint has."""
        return self.controls

    def last_image(self, parts: Parts) -> Literal["never", "sometimes", "always"]:
        """Return whether a clip can be given the picture that it ends with."""
        return "never"

    @abstractmethod
    def compression(self, parts: Parts) -> tuple[int, int]:
        """Return how many frames, and how many pixels of a side, one latent stands for."""
        raise NotImplementedError

    def frame_step(self, parts: Parts) -> int:
        """Return k where a clip has to have k * n + 1 frames; 1 where every number will do."""
        return self.compression(parts)[0]

    def size_step(self, parts: Parts) -> int:
        """Return what height and width have to be multiples of, in pixels."""
        return self.compression(parts)[1]

    def sizes(self, parts: Parts, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Return the sizes that a checkpoint makes, height and width in pixels, the given one first."""
        if not self.turns:
            return ((height, width),)
        step = self.size_step(parts)
        side = round(math.sqrt(height * width) / step) * step
        return tuple(dict.fromkeys([(height, width), (width, height), (side, side)]))

    def latent_shape(self, parts: Parts, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return `(channels, frames, height, width)` of the latents of one clip."""
        temporal, spatial = self.compression(parts)
        channels: int = parts.vae.config.latent_channels
        return channels, (frames - 1) // temporal + 1, height // spatial, width // spatial

    def draw_noise(self, shape: tuple[int, int, int, int, int], generator: Generators, device: torch.device) -> Tensor:
        """Return noise of unit variance, `shape`, float32, in the order in which diffusers' own class draws it."""
        batch, channels, frames, height, width = shape
        if not self.noise_by_frame:
            return cast(Tensor, randn_tensor(shape, generator=generator, device=device, dtype=torch.float32))
        by_frame = (batch, frames, channels, height, width)
        noise: Tensor = randn_tensor(by_frame, generator=generator, device=device, dtype=torch.float32)
        return noise.transpose(1, 2)

    def encode_text(self, parts: Parts, texts: Sequence[str], clip_skip: int | None = None) -> Cond:
        """Return what the network is given of prompts: `text`, `(batch, tokens, width)`, and perhaps more."""
        raise NotImplementedError

    def text_of(self, embeds: Tensor) -> Cond:
        """Return what `encode_text` returns, from hidden states that a caller brings, `(batch, tokens, width)`."""
        return {"text": embeds}

    @abstractmethod
    def encode_picture(self, parts: Parts, request: Request) -> Cond:
        """Return what the network is given of pictures, frame rate and controls."""
        raise NotImplementedError

    def drop_picture(self, picture: Cond) -> Cond:
        """Return what a branch without a picture is given: zeros, but for the frame rate."""
        return {name: tensor if name in _NOT_PICTURE else torch.zeros_like(tensor) for name, tensor in picture.items()}

    def negative_picture(self, picture: Cond) -> Cond:
        """Return what the negative branch of classic guidance is given of the picture."""
        return picture

    def guide(self, scale: float, network: str, request: Request) -> float | Tensor:
        """Return the scale of the caption at the noise levels of a network, by its name; a tensor that fits latents
        where it differs between frames.
        """
        return scale

    def set_timesteps(self, scheduler: Any, steps: int, shape: tuple[int, ...], device: torch.device) -> None:
        """Lay the scheduler's grid for latents of `shape`, `(batch, channels, frames, height, width)`."""
        scheduler.set_timesteps(steps, device=device)

    def with_grid(self, parts: Parts, cond: Cond, timesteps: Tensor) -> Cond:
        """Return what a branch is given, with the grid `(steps,)` where the network is told where a step ends."""
        return cond

    def initial(self, scheduler: Any, noise: Tensor, cond: Cond) -> Tensor:
        """Return the state that sampling starts from."""
        return noise * getattr(scheduler, "init_noise_sigma", 1.0)

    def network_at(self, parts: Parts, t: Tensor) -> str:
        """Return the name of the component that predicts at timestep `t`."""
        return self.networks[0]

    @abstractmethod
    def predict(self, network: nn.Module, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Call the network once.

        Args:
            z: `(batch, channels, frames, height, width)`, latents as `scheduler.scale_model_input` returns them.
            t: timestep, scalar or `(batch,)`.

        Returns:
            Of the shape of `z`: noise, v, sample or flow, as the scheduler's `prediction_type` says.
        """
        raise NotImplementedError

    def hold(self, z: Tensor, cond: Cond) -> Tensor:
        """Return latents after a step, with the frames put back that are given and not made."""
        return z

    @abstractmethod
    def encode_clip(self, parts: Parts, clips: Tensor) -> Tensor:
        """Return the latents that `decode` takes, `(batch, channels, latent frames, h, w)`, without random numbers.

        Args:
            clips: `(batch, 3, frames, height, width)` in [-1, 1].
        """
        raise NotImplementedError

    def frames_at_once(self, height: int, width: int) -> int | None:
        """Return how many latent frames of a clip's size are decoded at a time; None: all of them."""
        return None

    @abstractmethod
    def decode(self, parts: Parts, z: Tensor, chunk: int | None = None, request: Request | None = None) -> Tensor:
        """Return clips, `(batch, 3, frames, height, width)`, float32, about [-1, 1].

        Args:
            chunk: latent frames decoded at a time, of families that decode frame by frame; None: all.
            request: for its generator and controls, of families whose decoder has some.
        """
        raise NotImplementedError


def sampled_latents(parts: Parts, request: Request) -> Tensor:
    """Return a sample of the autoencoder's posterior for each picture, `(batch, channels, 1, h, w)`, not scaled.

    Pictures are encoded one by one, each with its clip's generator, in the order in which diffusers draws.
    """
    vae, pixels = parts.vae, pixels_of(request.cropped())[:, :, None].split(1)
    generators = request.generator if isinstance(request.generator, list) else [request.generator] * len(pixels)
    latents = [
        vae.encode(one.to(parts.device, vae.dtype)).latent_dist.sample(generator)
        for one, generator in zip(pixels, generators, strict=True)
    ]
    return torch.cat(latents)


def halvings(vae: Any) -> int:
    """Return how many pixels of a side one latent of an autoencoder stands for, which halves them at each level."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


_SMALL_WEIGHTS = 50_000_000
"""A network with fewer parameters was made to be tried: the least published one has 1.3 billion."""

_NOT_PICTURE = frozenset({"fps", "time_ids", "rope_scale"})
