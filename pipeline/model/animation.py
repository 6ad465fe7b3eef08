"""`ImageAnimationPipeline`: a still picture and a prompt in, a clip out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from diffusers.utils import BaseOutput
from PIL.Image import Image
from torch import Tensor

from ..spans import part
from . import call_arguments as arguments
from .components import check_output
from .families import Cond, Generators, Parts, Request, guidance_embedding, guidance_width
from .family_pipeline import FamilyPipeline
from .guidance import all_branches, guidance_for, in_stages
from .prompts import PromptLength, measure
from .sampling import Solver, check_scheduler, denoise

StepCallback = Callable[["ImageAnimationPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]

# Stands for "what checkpoints of this family are published with", since None has a meaning of its own.
_OF_FAMILY: Any = object()


@dataclass
class ImageAnimationPipelineOutput(BaseOutput):  # type: ignore[misc]  # diffusers is untyped
    """Clips of a call.

    Attributes:
        frames: by `output_type`: "pil", a list of PIL pictures for each clip; "np",
            `(batch, frames, height, width, 3)` in [0, 1]; "pt", `(batch, frames, 3, height, width)`
            in [0, 1]; "latent", `(batch, channels, frames, height, width)`.
    """

    frames: Any


class ImageAnimationPipeline(FamilyPipeline):
    """Image to video with the checkpoints of any family (`pipeline.model.families`).

    `from_pretrained` reads the folders and hub repositories of diffusers' own classes. Called with components, it picks
    the family by the network's class. Either way the object is of a subclass, whose signature is the family's.

    Args:
        given: the family's components by name, its options, and defaults of a call that this checkpoint is made for;
            None is the family's own:

            - num_inference_steps, guidance_scale, image_guidance_scale, num_frames, fps, height, width;
            - distilled_guidance_scale, distilled_image_guidance_scale: of a student, the scales that its teacher was
              guided with and that are part of its weights; None for a teacher;
            - guidance_range: of a student that is told the scale of the caption, the least and the most; then a call's
              `guidance_scale` is what it is told, `distilled_guidance_scale` where it says none, and a step is one pass
              whatever it is.

    Raises:
        ValueError: a component is missing or of another class, the components do not go together, or a default is out
            of its range.
    """

    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    @property
    def default_clip_skip(self) -> int | None:
        """Layers of the text encoder that a call leaves out where it does not say."""
        # A text encoder of one layer has no layer to leave out; the project's own has one.
        skip = self.family.clip_skip
        return skip if skip is not None and self.text_encoder.config.num_hidden_layers > 1 else None

    def encode_prompt(self, prompts: Sequence[str], clip_skip: int | None = None) -> Tensor:
        """Return hidden states of the text encoder, `(batch, tokens, width)`.

        Args:
            clip_skip: layers to leave out at the end, of families with CLIP's text encoder.
        """
        return self.family.encode_text(self.parts, prompts, clip_skip)["text"]

    def decode_latents(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """Return clips of latents, `(batch, 3, frames, height, width)`, float32, about [-1, 1].

        Args:
            chunk: latent frames decoded at a time, of families that decode frame by frame; None decodes all at once.
        """
        return self.family.decode(self.parts, latents, chunk)

    def conditions(
        self,
        full: Sequence[str] | Tensor | Cond,
        negative: Sequence[str] | Tensor | Cond,
        picture: Cond,
        branches: Sequence[str],
        clip_skip: int | None,
        told_scale: float | None = None,
    ) -> dict[str, Cond]:
        """Return what the network is given in each guidance branch, by the branch's name.

        Args:
            full, negative: texts, what the text encoder makes of them, `(batch, tokens, width)`, or all that
                `Family.encode_text` returned.
            picture: `Family.encode_picture`'s.
            told_scale: of the caption, where the network is told it; None is the student's own.
        """
        family, parts = self.family, self.parts

        def encoded(texts: Sequence[str] | Tensor | Cond, skip: int | None) -> Cond:
            if not family.takes_prompt:
                return {}
            if isinstance(texts, Mapping):
                text = texts
            elif isinstance(texts, Tensor):
                text = family.text_of(texts)
            else:
                compute = partial(family.encode_text, parts, texts, skip)
                text = self.text_encoding.encode((tuple(texts), skip), self.text_encoder, parts.device, compute)
            return {
                name: t.to(parts.device, parts.dtype if t.is_floating_point() else None) for name, t in text.items()
            }

        text = other = encoded(full, clip_skip)
        if tuple(branches) != ("full",):
            other = encoded(negative, clip_skip if family.skips_layers_of_negative else None)
        if text and other["text"].shape[1:] != text["text"].shape[1:]:
            shapes = f"{tuple(other['text'].shape)} does not go with {tuple(text['text'].shape)} of the prompt"
            raise ValueError(f"negative_prompt_embeds: {shapes}; give both as embeddings of as many tokens")
        made: dict[str, Callable[[], Cond]] = {
            "full": lambda: {**text, **picture},
            "negative": lambda: {**other, **family.negative_picture(picture)},
            "image": lambda: {**other, **picture},
            "uncond": lambda: {**other, **family.drop_picture(picture)},
        }
        conds = {name: made[name]() for name in branches}
        width = guidance_width(self.network)
        if self.config.guidance_range is None or width is None:
            return conds
        scale = self.config.distilled_guidance_scale if told_scale is None else told_scale
        scales = torch.full((len(text["text"]),), scale, device=parts.device)
        told = guidance_embedding(scales, width).to(parts.dtype)
        return {name: {**cond, "guidance": told} for name, cond in conds.items()}

    @torch.no_grad()
    def __call__(
        self,
        image: Image | Sequence[Image],
        prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        fps: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = _OF_FAMILY,
        negative_prompt: str | Sequence[str] | None = None,
        last_image: Image | Sequence[Image] | None = None,
        num_videos_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        clip_skip: int | None = _OF_FAMILY,
        decode_chunk_size: int | Literal["auto"] | None = "auto",
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
        **controls: float,
    ) -> Any:
        """Animate pictures.

        Args:
            image, prompt: one of each, or as many prompts as pictures. Families without a text encoder take no prompt.
            height, width: of the clip in pixels; multiples of what the family encodes into one latent.
            num_frames, fps, num_inference_steps: None takes the checkpoint's.
            guidance_scale: of the caption. None takes the checkpoint's. A student has it in its weights, or is
                told it (`guidance_range`).
            image_guidance_scale: of the picture: three branches. None: classic guidance with two.
                Left out: as the checkpoint says.
            negative_prompt: text of the branches that do not bear the prompt; None is the family's.
            last_image: picture that the clip ends with, where the family has it; as many as pictures.
            num_videos_per_prompt: clips of each picture and prompt, one after the other.
            prompt_embeds, negative_prompt_embeds: in place of the texts, `(batch, tokens, width)`, as
                `encode_prompt` gives them.
            clip_skip: layers of the text encoder to leave out; left out: as the family is published.
            decode_chunk_size: latent frames decoded at a time, of families that decode frame by frame; None: all of
                them. "auto": as the family is published.
            generator: of the noise; one, or one for each clip, which is then the clip that it is alone.
            latents: noise of unit variance to start from, `(batch, channels, frames, height / f, width / f)`.
            callback_on_step_end: called as `(pipe, step, timestep, {"latents": ...})` after each
                step, as in diffusers; an exception that it raises stops the call.
            controls: further numbers, of families that have them (`Family.controls`): `motion_scale` of PIA, for
                example.

        Returns:
            `ImageAnimationPipelineOutput`, or a tuple of its frames alone where `return_dict` is false.

        Raises:
            ValueError: an argument is out of its range; the text begins with the argument's name.
            NotFiniteError: network or autoencoder computed NaN or infinity.
        """
        # Looked up once: diffusers walks over all modules for the device, at the price of a small model's layers.
        family, parts, config = self.family, self.parts, self.config
        default_height, default_width = self.default_size
        height, width = height or default_height, width or default_width
        frames = config.num_frames if num_frames is None else num_frames
        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        rate = config.fps if fps is None else fps
        text_width = int(self.text_encoder.config.hidden_size) if family.takes_prompt else 0
        images, prompts, negatives = arguments.broadcast(
            family, text_width, image, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds
        )
        last_images = arguments.last_images(family, parts, last_image, len(images))
        chosen = arguments.checked_controls(family, parts, controls)
        image_scale = config.image_guidance_scale if image_guidance_scale is _OF_FAMILY else image_guidance_scale
        arguments.check_image_scale(family, image_scale)
        guidance, told_scale = guidance_for(config, guidance_scale, image_scale)
        skip = self.default_clip_skip if clip_skip is _OF_FAMILY else clip_skip
        arguments.check_counts(
            num_frames=frames, num_inference_steps=steps, fps=rate, num_videos_per_prompt=num_videos_per_prompt
        )
        arguments.check_shape(family, parts, frames, height, width)
        check_scheduler(self.scheduler, flow=family.flow)
        arguments.check_callback_tensors(callback_on_step_end_tensor_inputs)
        arguments.check_clip_skip(family, skip, getattr(self, "text_encoder", None))

        copies = num_videos_per_prompt
        request = Request(images, frames, height, width, rate, last_images, generator, chosen)
        noise, picture = self._noise_and_picture(parts, request, copies, latents)
        prompts, negatives = (arguments.repeat_each(texts, copies) for texts in (prompts, negatives))
        stages = in_stages(guidance, [family.guide(guidance.text, name, request) for name in family.networks])
        with part("encode prompt"):
            conds = self.conditions(prompts, negatives, picture, all_branches(stages), skip, told_scale)

        family.set_timesteps(self.scheduler, steps, tuple(noise.shape), parts.device)
        solver = Solver(self.scheduler, generator, by_frame=family.steps_by_frame, eta=eta)

        def after_step(step: int, t: Tensor, z: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return z
            shown = {"latents": z} if "latents" in callback_on_step_end_tensor_inputs else {}
            return (callback_on_step_end(self, step, t, shown) or {}).get("latents", z)

        z = denoise(self, parts, noise, conds, stages, solver, after_step)
        check_output(family.networks[0], z)
        video: Any = z
        if output_type != "latent":
            chunk = family.frames_at_once(height, width) if decode_chunk_size == "auto" else decode_chunk_size
            with part("decode latents"):
                decoded = family.decode(parts, z, chunk, request)
                check_output("vae", decoded)
                video = self.video_processor.postprocess_video(decoded, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImageAnimationPipelineOutput(frames=video) if return_dict else (video,)

    def prompt_length(self, prompt: str) -> PromptLength:
        """Return how many tokens a prompt has, and how many of them the text encoder reads."""
        if not self.family.takes_prompt:
            return PromptLength(0, 0)
        return measure(self.tokenizer, self.text_encoder, prompt, self.family.text_tokens)

    def _noise_and_picture(
        self, parts: Parts, request: Request, copies: int, latents: Tensor | None
    ) -> tuple[Tensor, Cond]:
        """Return noise and encoded pictures of each clip, drawn in the family's order."""
        family, generator, count = self.family, request.generator, len(request.images) * copies
        arguments.check_generators(generator, count)

        def drawn() -> Tensor:
            shape = (count, *family.latent_shape(parts, request.frames, request.height, request.width))
            if latents is not None:
                return arguments.given_noise(latents, shape, parts.device)
            return family.draw_noise(shape, generator, parts.device)

        first = drawn() if family.noise_before_image else None
        with part("encode image"):
            if isinstance(generator, list) and copies > 1:  # each clip's generator draws for its picture too
                request, copies = request.repeated(copies), 1
            picture = family.encode_picture(parts, request)
            if copies > 1:
                picture = {name: arguments.repeat_each(tensor, copies) for name, tensor in picture.items()}
        return drawn() if first is None else first, picture
