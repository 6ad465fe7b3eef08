"""`ImageAnimationPipeline`: a still picture and a prompt in, a clip out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    I2VGenXLUNet,
    MotionAdapter,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor
from PIL.Image import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from . import call_arguments as arguments
from .components import check_output, load_models
from .denoiser import Denoiser, PlainDenoiser
from .diffusers_folder import has_only_variant, name_portable_classes
from .families import (
    Conditioning,
    ImageConditioning,
    TeacherFamily,
    check_guided,
    family_of,
    guidance_embedding,
    guidance_width,
)
from .guidance import ClipGuidance, Guidance, guidance_for
from .latents import LatentsMixin
from .prompts import check_tokenizer, tokenize
from .spans import part

StepCallback = Callable[["ImageAnimationPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]

# Stands for "what checkpoints of this family are published with", since None has a meaning of its own.
_OF_FAMILY: Any = object()

_DECODED_PIXELS = 512 * 512
"""Of frames that are decoded together. The decoder's memory grows with them; more gain nothing."""


@dataclass
class ImageAnimationPipelineOutput(BaseOutput):  # type: ignore[misc]  # diffusers is untyped
    """Clips of a call.

    Attributes:
        frames: by `output_type`: "pil", a list of PIL pictures for each clip; "np",
            `(batch, frames, height, width, 3)` in [0, 1]; "pt", `(batch, frames, 3, height, width)`
            in [0, 1]; "latent", `(batch, 4, frames, height, width)`.
    """

    frames: Any


class ImageAnimationPipeline(LatentsMixin, DiffusionPipeline):  # type: ignore[misc]  # diffusers is untyped
    """Text + image to video with a U-Net that has temporal layers.

    Reads folders and hub repositories of I2VGen-XL (`I2VGenXLPipeline`) and PIA (`PIAPipeline`) as
    published, and its own. The U-Net's class decides the family (`pipeline.families`).

    Args:
        vae: autoencoder of single frames.
        text_encoder, tokenizer: of the prompt.
        unet: of a known family. A `UNet2DConditionModel` is joined with `motion_adapter`.
        scheduler: any diffusers scheduler of noise levels (not of flow matching) whose `step` takes prediction,
            timestep and sample.
        image_encoder, feature_extractor: of the picture, where the family has them.
        image_latents_fill: how the picture is laid out over the frames for `I2VGenXLUNet`: "position"
            (published: picture in frame 0, then how far the frame is into the clip) or "repeat".
        image_latents_mode: "sample" from the encoder's posterior (published), or take its "mode",
            which needs no random numbers.
        num_inference_steps, guidance_scale, image_guidance_scale, num_frames, fps: defaults of a
            call that this checkpoint is made for. A `guidance_scale` of None is the family's.
        distilled_guidance_scale, distilled_image_guidance_scale: of a student, the scales that its
            teacher was guided with and that are part of its weights; None for a teacher.
        guidance_range: of a student that is told the scale of the caption, the least and the most; then
            a call's `guidance_scale` is what it is told, `distilled_guidance_scale` where it says none,
            and a step is one pass whatever it is.

    Raises:
        ValueError: `guidance_range` does not fit the U-Net or the scale, an option is not one of those above, or
            the scheduler is of another kind.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = ["image_encoder", "feature_extractor", "motion_adapter"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: I2VGenXLUNet | UNetMotionModel | UNet2DConditionModel,
        scheduler: SchedulerMixin,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        motion_adapter: MotionAdapter | None = None,
        image_latents_fill: str = "position",  # diffusers reads the types, and warns of a Literal
        image_latents_mode: str = "sample",
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        num_frames: int = 16,
        fps: int = 16,
        distilled_guidance_scale: float | None = None,
        distilled_image_guidance_scale: float | None = None,
        guidance_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(unet, UNet2DConditionModel):
            unet = UNetMotionModel.from_unet2d(unet, motion_adapter)
        self._family = family_of(unet)
        arguments.check_scheduler(scheduler)
        for name, value, known in (
            ("image_latents_fill", image_latents_fill, ("position", "repeat")),
            ("image_latents_mode", image_latents_mode, ("sample", "mode")),
        ):
            if value not in known:
                raise ValueError(f"{name}: {value!r} is not one of {', '.join(known)}")
        if guidance_range is not None:
            check_guided(unet, guidance_range, distilled_guidance_scale)
        self._denoiser: Denoiser = PlainDenoiser(self)
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            motion_adapter=motion_adapter,
        )
        self.register_to_config(
            image_latents_fill=image_latents_fill,
            image_latents_mode=image_latents_mode,
            num_inference_steps=num_inference_steps,
            guidance_scale=self._family.guidance_scale if guidance_scale is None else guidance_scale,
            image_guidance_scale=image_guidance_scale,
            num_frames=num_frames,
            fps=fps,
            distilled_guidance_scale=distilled_guidance_scale,
            distilled_image_guidance_scale=distilled_image_guidance_scale,
            guidance_range=None if guidance_range is None else list(guidance_range),
        )
        self.vae_scale_factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.video_processor = VideoProcessor(do_resize=False, vae_scale_factor=self.vae_scale_factor)

    @property
    def family(self) -> TeacherFamily:
        return self._family

    @property
    def denoiser(self) -> Denoiser:
        """What predicts at each step. `pipeline.optimise` puts faster ones here, and takes them out again."""
        return self._denoiser

    @denoiser.setter
    def denoiser(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels of a clip when a call names none."""
        side = self.unet.config.sample_size
        # Published I2VGen-XL U-Nets say `sample_size` 32, which is not what they are used with.
        published = side is None or (side == 32 and self.vae_scale_factor == 8)
        if published and self.family.default_size is not None:
            return self.family.default_size
        height, width = side if isinstance(side, (tuple, list)) else (side, side)
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> ImageAnimationPipeline:
        """As `DiffusionPipeline.from_pretrained`; where there are fp16 files alone, no `variant` is needed.

        Raises:
            ModelError: the weights of a component do not fit or are not finite, or the tokenizer knows no words.
        """
        # diffusers imports no module for being named in a folder; the project's own scheduler has to be there.
        importlib.import_module(".optimise.solver", __package__)
        if "variant" not in kwargs and has_only_variant(pretrained_model_name_or_path, "fp16", kwargs):
            kwargs["variant"] = "fp16"
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = Path(cls.download(str(pretrained_model_name_or_path), **kwargs))
        models = load_models(cls, folder, kwargs)
        pipe = cast(ImageAnimationPipeline, super().from_pretrained(str(folder), **models, **kwargs))
        check_tokenizer(pipe.tokenizer, pipe.text_encoder, None if "tokenizer" in kwargs else folder / "tokenizer")
        return pipe

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, *args, **kwargs)
        name_portable_classes(Path(save_directory) / "model_index.json")

    def encode_prompt(
        self, prompts: Sequence[str], clip_skip: int | None, device: torch.device | None = None
    ) -> Tensor:
        """Hidden states of the text encoder, `(batch, tokens, width)`.

        Args:
            clip_skip: layers to leave out at the end; the final norm is applied all the same.
            device: of the result; None looks up where the pipeline computes.
        """
        device = device or self._execution_device
        tokens = tokenize(self.tokenizer, self.text_encoder, prompts)
        mask = tokens.attention_mask if getattr(self.text_encoder.config, "use_attention_mask", False) else None
        output = self.text_encoder(
            tokens.input_ids.to(device),
            attention_mask=None if mask is None else mask.to(device),
            output_hidden_states=clip_skip is not None,
        )
        if clip_skip is None:
            return cast(Tensor, output.last_hidden_state)
        # transformers 5 took the inner `text_model` away (diffusers #14124).
        inner: Any = getattr(self.text_encoder, "text_model", self.text_encoder)
        return cast(Tensor, inner.final_layer_norm(output.hidden_states[-(clip_skip + 1)]))

    def conditions(
        self,
        full: Sequence[str] | Tensor,
        negative: Sequence[str] | Tensor,
        image: ImageConditioning,
        guidance: Guidance | ClipGuidance,
        fps: int,
        clip_skip: int | None,
        told_scale: float | None = None,
    ) -> Conditioning:
        """What the U-Net is told in all branches of `guidance`, stacked along the batch.

        Args:
            full, negative: texts, or what the text encoder makes of them, `(batch, tokens, width)`.
            told_scale: of the caption, where the U-Net is told it; None is the student's own.
        """

        def encoded(texts: Sequence[str] | Tensor, skip: int | None) -> Tensor:
            return texts.to(device, dtype) if isinstance(texts, Tensor) else self.encode_prompt(texts, skip, device)

        device, dtype = image.latents.device, image.latents.dtype
        rate = torch.full((len(full),), fps, device=device)
        text_full = text_other = encoded(full, clip_skip).to(dtype)
        if guidance.branches != ("full",):
            text_other = encoded(negative, clip_skip if self.family.skips_layers_of_negative else None).to(dtype)
        if text_other.shape[1:] != text_full.shape[1:]:
            shapes = f"{tuple(text_other.shape)} does not go with {tuple(text_full.shape)} of the prompt"
            raise ValueError(f"negative_prompt_embeds: {shapes}; give both as embeddings of as many tokens")
        branches = {
            "full": lambda: Conditioning(text_full, image, rate),
            "negative": lambda: Conditioning(text_other, self.family.two_branch_negative(image), rate),
            "image": lambda: Conditioning(text_other, image, rate),
            "uncond": lambda: Conditioning(text_other, image.dropped(), rate),
        }
        told = Conditioning.stack([branches[name]() for name in guidance.branches])
        width = guidance_width(self.unet)
        if self.config.guidance_range is None or width is None:
            return told
        scale = self.config.distilled_guidance_scale if told_scale is None else told_scale
        scales = torch.full((len(told.text),), scale, device=device)
        return replace(told, guidance=guidance_embedding(scales, width).to(dtype))

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
        num_videos_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        motion_scale: int = 0,
        clip_skip: int | None = _OF_FAMILY,
        decode_chunk_size: int | Literal["auto"] | None = "auto",
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> Any:
        """Animate pictures.

        Args:
            image, prompt: one of each, or as many prompts as pictures.
            height, width: of the clip in pixels; multiples of the autoencoder's factor.
            num_frames, fps, num_inference_steps: None takes the checkpoint's.
            guidance_scale: of the caption. None takes the checkpoint's. A student has it in its weights, or is
                told it (`guidance_range`).
            image_guidance_scale: of the picture: three branches. None: classic guidance with two.
                Left out: as the checkpoint says.
            negative_prompt: text of the branches that do not bear the prompt; None is no words.
            num_videos_per_prompt: clips of each picture and prompt, one after the other.
            prompt_embeds, negative_prompt_embeds: in place of the texts, `(batch, tokens, width)`, as
                `encode_prompt` gives them.
            motion_scale: amount and kind of motion, where the family has such a control (PIA).
            clip_skip: layers of the text encoder to leave out; left out: as the family is published.
            decode_chunk_size: frames decoded at a time; None: all of them. "auto": one, as published, or
                as many small ones as have the pixels of one of 512 x 512.
            generator: of the noise; one, or one for each clip, which is then the clip that it is alone.
            latents: noise of unit variance to start from, `(batch, 4, frames, height / f, width / f)`.
            callback_on_step_end: called as `(pipe, step, timestep, {"latents": ...})` after each
                step, as in diffusers; an exception that it raises stops the call.
            callback_on_step_end_tensor_inputs: names of the tensors that it is given; "latents" is the one there is.

        Returns:
            `ImageAnimationPipelineOutput`, or a tuple of its frames alone where `return_dict` is false.

        Raises:
            ValueError: an argument is out of its range; the text begins with the argument's name.
            NotFiniteError: U-Net or autoencoder computed NaN or infinity.
        """
        width_of_text = self.text_encoder.config.hidden_size
        images, prompts, negatives = arguments.broadcast(
            image, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, width_of_text
        )
        default_height, default_width = self.default_size
        height, width = height or default_height, width or default_width
        frames = self.config.num_frames if num_frames is None else num_frames
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        rate = self.config.fps if fps is None else fps
        image_scale = self.config.image_guidance_scale if image_guidance_scale is _OF_FAMILY else image_guidance_scale
        guidance, told_scale = guidance_for(self.config, guidance_scale, image_scale)
        skip = self.default_clip_skip if clip_skip is _OF_FAMILY else clip_skip
        arguments.check_size(height, width, self.vae_scale_factor)
        arguments.check_counts(
            num_frames=frames, num_inference_steps=steps, fps=rate, num_videos_per_prompt=num_videos_per_prompt
        )
        arguments.check_scheduler(self.scheduler)
        arguments.check_callback_tensors(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        arguments.check_clip_skip(skip, self.text_encoder.config.num_hidden_layers)

        # Looked up once: diffusers walks over all modules for each, which costs as much as a small model's layers.
        device, dtype = self._execution_device, self.unet.dtype
        copies = num_videos_per_prompt
        noise, seen = self.noise_and_image(
            images, copies, (frames, height, width), generator, latents, device, motion_scale
        )
        prompts, negatives = (arguments.repeat_each(texts, copies) for texts in (prompts, negatives))
        with part("encode prompt"):
            conditioning = self.conditions(prompts, negatives, seen, guidance, rate, skip, told_scale)

        self.scheduler.set_timesteps(steps, device=device)
        sample = noise * self.scheduler.init_noise_sigma
        extra = self._step_arguments(eta, generator)
        predict = self.denoiser.start(conditioning)
        with self.progress_bar(total=len(self.scheduler.timesteps)) as progress:
            for i, t in enumerate(self.scheduler.timesteps):
                with part("step", step=i + 1):
                    stacked = self.scheduler.scale_model_input(torch.cat([sample] * guidance.passes), t)
                    # Between the passes all is float32: in half precision the rounding of each step would add up.
                    predicted = guidance.combine(predict(stacked.to(dtype), t).float())
                    sample = self._step(predicted, t, sample, extra)
                if callback_on_step_end is not None:
                    given = {"latents": sample} if "latents" in callback_on_step_end_tensor_inputs else {}
                    returned = callback_on_step_end(self, i, t, given) or {}
                    sample = returned.get("latents", sample)
                progress.update()
        check_output("unet", sample)

        chunk = max(1, _DECODED_PIXELS // (height * width)) if decode_chunk_size == "auto" else decode_chunk_size
        if output_type == "latent":
            video: Any = sample
        else:
            with part("decode latents"):
                decoded = self.decode_latents(sample, chunk)
                check_output("vae", decoded)
                video = self.video_processor.postprocess_video(decoded, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImageAnimationPipelineOutput(frames=video) if return_dict else (video,)

    @property
    def default_clip_skip(self) -> int | None:
        """Layers of the text encoder that a call leaves out where it does not say."""
        # A text encoder of one layer has no layer to leave out; the project's own has one.
        return self.family.clip_skip if self.text_encoder.config.num_hidden_layers > 1 else None
