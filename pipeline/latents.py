"""What a pipeline does with latents: pictures to latents and back, noise, steps of the scheduler."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL.Image import Image
from torch import Tensor

from .call_arguments import check_generators, repeat_each, starting_noise
from .families import ImageConditioning
from .spans import part


class LatentsMixin:
    """The part of `ImageAnimationPipeline` that knows of latents."""

    vae: Any
    unet: Any
    scheduler: Any
    config: Any
    _execution_device: torch.device

    def encode_pixels(self, pixels: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
        """Scaled latents of pictures.

        Args:
            pixels: `(batch, 3, height, width)` in [-1, 1].
            generator: of the posterior's sample, one or one for each picture; None is torch's global one.
                Unused in mode "mode".

        Returns:
            `(batch, 4, height / f, width / f)` with f the autoencoder's factor.
        """
        pixels = pixels.to(device=self._execution_device, dtype=self.vae.dtype)
        posterior = self.vae.encode(pixels).latent_dist
        if self.config.image_latents_mode == "mode":
            latents = posterior.mode()
        elif isinstance(generator, list):
            parts = zip(posterior.mean, posterior.std, generator, strict=True)
            latents = torch.stack(
                [m + s * randn_tensor(m.shape, generator=g, device=m.device, dtype=m.dtype) for m, s, g in parts]
            )
        else:
            latents = posterior.sample(generator)
        return cast(Tensor, (latents * self.vae.config.scaling_factor).to(self.unet.dtype))

    def decode_latents(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """Clips of latents, `(batch, 3, frames, height, width)`, float32, about [-1, 1].

        Args:
            chunk: frames decoded at a time; None decodes all at once.
        """
        batch, _, frames, _, _ = latents.shape
        flat = (latents / self.vae.config.scaling_factor).transpose(1, 2).flatten(0, 1)  # (batch * frames, 4, h, w)
        parts = [self.vae.decode(part.to(self.vae.dtype)).sample for part in flat.split(chunk or flat.shape[0])]
        video: Tensor = torch.cat(parts).unflatten(0, (batch, frames)).transpose(1, 2)
        return video.float()

    def noise_and_image(
        self: Any,
        images: list[Image],
        copies: int,
        shape: tuple[int, int, int],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
        device: torch.device,
        motion_scale: int,
    ) -> tuple[Tensor, ImageConditioning]:
        """Noise to start from, and the encoded pictures, for each clip, in the order in which the family draws them.

        Args:
            copies: clips of each picture.
            shape: frames, height and width of a clip, in pixels.
            latents: the noise, where it is given.
        """
        frames, height, width = shape
        count, factor = len(images) * copies, self.vae_scale_factor
        check_generators(generator, count)

        def drawn() -> Tensor:
            noise_shape = (count, 4, frames, height // factor, width // factor)
            return starting_noise(noise_shape, generator, latents, device)

        first = drawn() if self.family.noise_before_image else None
        with part("encode image"):
            if isinstance(generator, list):  # each clip's generator draws for its picture too
                images, copies = repeat_each(images, copies), 1
            seen = self.family.condition_image(self, images, frames, height, width, generator, motion_scale)
            if copies > 1:
                seen = seen.of_rows(torch.arange(len(images), device=device).repeat_interleave(copies))
        return drawn() if first is None else first, seen

    def _step(self: Any, predicted: Tensor, t: Tensor, sample: Tensor, extra: dict[str, Any]) -> Tensor:
        """One step of the scheduler, `(batch, 4, frames, h, w)`."""
        if not self.family.steps_by_frame or isinstance(extra.get("generator"), list):
            return cast(Tensor, self.scheduler.step(predicted, t, sample, **extra).prev_sample)
        # As the published pipeline has it: noise that a scheduler draws is laid out frame by frame.
        flat = [part.transpose(1, 2).flatten(0, 1) for part in (predicted, sample)]  # (batch * frames, 4, h, w)
        stepped: Tensor = self.scheduler.step(flat[0], t, flat[1], **extra).prev_sample
        return cast(Tensor, stepped.unflatten(0, (sample.shape[0], -1))).transpose(1, 2)  # (batch, 4, frames, h, w)

    def _step_arguments(self, eta: float, generator: torch.Generator | list[torch.Generator] | None) -> dict[str, Any]:
        accepted = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}
