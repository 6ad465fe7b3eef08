"""`ImageAnimationPipeline`: a still picture and a prompt in, a clip out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor
from PIL.Image import Image
from torch import Tensor, nn

from ..spans import part
from . import call_arguments as arguments
from .call_arguments import KEPT_BETWEEN_STEPS
from .components import STORED, check_output, load_components, with_moved_modules
from .denoiser import Denoiser, PlainDenoiser
from .diffusers_folder import OWN_SETTINGS, finish_index, has_only_variant, read_index
from .families import (
    Cond,
    Family,
    Parts,
    Request,
    check_guided,
    family_of_components,
    family_of_index,
    guidance_embedding,
    guidance_width,
    stack,
)
from .guidance import AnyGuidance, all_branches, guidance_for, in_stages
from .prompts import PromptLength, check_tokenizer, measure
from .text import TextEncoding

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


class ImageAnimationPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is untyped
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

    family: ClassVar[Family]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __new__(cls, *_args: Any, **given: Any) -> Self:
        kind = cls if hasattr(cls, "family") else _pipeline_of(family_of_components(given))
        return cast(Self, object.__new__(kind))

    def __init__(self, **given: Any) -> None:
        super().__init__()
        family = self.family
        components = family.assemble({name: given.pop(name, None) for name in family.components})
        options = {name: given.pop(name, default) for name, default in family.options.items()}
        settings = {name: given.pop(name, None) for name in OWN_SETTINGS}
        if given:
            raise ValueError(f"{next(iter(given))}: the {family.name} family has no such component or option")
        arguments.check_components(family, components)
        family.check(components, options)
        arguments.check_scheduler(components["scheduler"], flow=family.flow)
        network = components[family.networks[0]]
        if (limits := settings["guidance_range"]) is not None:
            check_guided(network, limits, settings["distilled_guidance_scale"])
            settings["guidance_range"] = list(limits)
        self._denoiser: Denoiser = PlainDenoiser(self)
        self.text_encoding = TextEncoding()
        self.register_modules(**components)
        self.register_to_config(**options)
        defaults = family.defaults_of(self.parts)
        for name, value in (
            ("num_inference_steps", defaults.steps),
            ("guidance_scale", defaults.guidance_scale),
            ("num_frames", defaults.frames),
            ("fps", defaults.fps),
        ):
            if settings[name] is None:
                settings[name] = value
        self.register_to_config(**settings)
        self.video_processor = VideoProcessor(do_resize=False)

    @property
    def network(self) -> Any:
        """What predicts at each step, of diffusers' `ModelMixin`; of two for different noise levels, the first."""
        return getattr(self, self.family.networks[0])

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All that predict at some noise level."""
        found = (getattr(self, name) for name in self.family.networks)
        return tuple(network for network in found if network is not None)

    @property
    def parts(self) -> Parts:
        """The components as a family takes them, with where they compute."""
        components = {name: getattr(self, name) for name in self.family.components}
        options = {name: self.config[name] for name in self.family.options}
        # diffusers takes the device of the first component, which a text encoder that waits elsewhere is not.
        offloads = self.text_encoding.placement == "offload"
        device = self.network.device if offloads else self._execution_device
        return Parts(components, options, device, self.network.dtype)

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
        defaults = self.family.defaults_of(self.parts)
        return self.config.height or defaults.height, self.config.width or defaults.width

    @property
    def default_clip_skip(self) -> int | None:
        """Layers of the text encoder that a call leaves out where it does not say."""
        # A text encoder of one layer has no layer to leave out; the project's own has one.
        skip = self.family.clip_skip
        return skip if skip is not None and self.text_encoder.config.num_hidden_layers > 1 else None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> ImageAnimationPipeline:
        """As `DiffusionPipeline.from_pretrained`; where there are fp16 files alone, no `variant` is needed.

        Args:
            kwargs: `device` beside those of diffusers: weights are read straight to it, so that they lie in memory
                once. Without `dtype` they come in float32; "stored" takes the precision of each component's file.

        Raises:
            ModelError: the weights of a component do not fit or are not finite, or the tokenizer knows no words.
            ValueError: the checkpoint is of no known family, or a component is missing.
        """
        source, device = str(pretrained_model_name_or_path), kwargs.pop("device", None)
        if "variant" not in kwargs and has_only_variant(source, "fp16", kwargs):
            kwargs["variant"] = "fp16"
        index, own = read_index(cls, source, kwargs)
        kind = _pipeline_of(family_of_index(index))
        folder = Path(source)
        if not folder.is_dir():
            folder = Path(kind.download(source, **kwargs))
        arguments.check_index(kind.family, index, folder, kwargs)
        components = load_components(kind, folder, kwargs, device)
        if kwargs.get("dtype") == STORED:
            del kwargs["dtype"]
        # What diffusers' reader of this class finds in the index is the family's; `own` is what it passes over.
        pipe = super(ImageAnimationPipeline, kind).from_pretrained(str(folder), **components, **{**own, **kwargs})
        if kind.family.takes_prompt:
            where = None if "tokenizer" in kwargs else folder / "tokenizer"
            check_tokenizer(pipe.tokenizer, pipe.text_encoder, where, kind.family.text_tokens)
        return cast(ImageAnimationPipeline, pipe)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As diffusers has it, without what earlier releases of this project wrote otherwise."""
        known = {*cls.family.components, *cls.family.options, *OWN_SETTINGS}
        index = {name: value for name, value in config_dict.items() if name in known or value != [None, None]}
        return super().extract_init_dict(with_moved_modules(index), **kwargs)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As diffusers' own class of the family writes it, which reads it back."""
        super().save_pretrained(save_directory, *args, **kwargs)
        family = self.family
        finish_index(
            Path(save_directory) / "model_index.json", family.pipeline_class, (*OWN_SETTINGS, *family.own_options)
        )

    def encode_prompt(self, prompts: Sequence[str], clip_skip: int | None = None) -> Tensor:
        """Hidden states of the text encoder, `(batch, tokens, width)`.

        Args:
            clip_skip: layers to leave out at the end, of families with CLIP's text encoder.
        """
        return self.family.encode_text(self.parts, prompts, clip_skip)["text"]

    def decode_latents(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """Clips of latents, `(batch, 3, frames, height, width)`, float32, about [-1, 1].

        Args:
            chunk: latent frames decoded at a time, of families that decode frame by frame; None decodes all at once.
        """
        return self.family.decode(self.parts, latents, chunk)

    def conditions(
        self,
        full: Sequence[str] | Tensor,
        negative: Sequence[str] | Tensor,
        picture: Cond,
        branches: Sequence[str],
        clip_skip: int | None,
        told_scale: float | None = None,
    ) -> dict[str, Cond]:
        """What the network is given in each guidance branch, by the branch's name.

        Args:
            full, negative: texts, or what the text encoder makes of them, `(batch, tokens, width)`.
            picture: `Family.encode_picture`'s.
            told_scale: of the caption, where the network is told it; None is the student's own.
        """
        family, parts = self.family, self.parts

        def encoded(texts: Sequence[str] | Tensor, skip: int | None) -> Cond:
            if not family.takes_prompt:
                return {}
            if isinstance(texts, Tensor):
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
        scales = torch.full((len(full),), scale, device=parts.device)
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
        generator: torch.Generator | list[torch.Generator] | None = None,
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
            callback_on_step_end_tensor_inputs: names of the tensors that it is given; "latents" is the one there is.
            controls: further numbers, of families that have them (`Family.controls`): `motion_scale` of PIA, for
                example.

        Returns:
            `ImageAnimationPipelineOutput`, or a tuple of its frames alone where `return_dict` is false.

        Raises:
            ValueError: an argument is out of its range; the text begins with the argument's name.
            NotFiniteError: network or autoencoder computed NaN or infinity.
        """
        # Looked up once: diffusers walks over all modules for the device, at the price of a small model's layers.
        family, parts = self.family, self.parts
        default_height, default_width = self.default_size
        height, width = height or default_height, width or default_width
        frames = self.config.num_frames if num_frames is None else num_frames
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        rate = self.config.fps if fps is None else fps
        images, prompts, negatives = arguments.broadcast(
            family, self.text_width, image, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds
        )
        last_images = arguments.last_images(family, parts, last_image, len(images))
        chosen = arguments.check_controls(family, parts, controls)
        image_scale = self.config.image_guidance_scale if image_guidance_scale is _OF_FAMILY else image_guidance_scale
        arguments.check_image_scale(family, image_scale)
        guidance, told_scale = guidance_for(self.config, guidance_scale, image_scale)
        skip = self.default_clip_skip if clip_skip is _OF_FAMILY else clip_skip
        arguments.check_counts(
            num_frames=frames, num_inference_steps=steps, fps=rate, num_videos_per_prompt=num_videos_per_prompt
        )
        arguments.check_shape(family, parts, frames, height, width)
        arguments.check_scheduler(self.scheduler, flow=family.flow)
        arguments.check_callback_tensors(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        arguments.check_clip_skip(family, skip, getattr(self, "text_encoder", None))

        copies = num_videos_per_prompt
        request = Request(images, frames, height, width, rate, last_images, generator, chosen)
        noise, picture = self._noise_and_picture(parts, request, copies, latents)
        prompts, negatives = (arguments.repeat_each(texts, copies) for texts in (prompts, negatives))
        stages = in_stages(guidance, [family.guide(guidance.text, name, request) for name in family.networks])
        with part("encode prompt"):
            conds = self.conditions(prompts, negatives, picture, all_branches(stages), skip, told_scale)

        family.set_timesteps(self.scheduler, steps, tuple(noise.shape), parts.device)

        def after_step(step: int, t: Tensor, z: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return z
            shown = {"latents": z} if "latents" in callback_on_step_end_tensor_inputs else {}
            return (callback_on_step_end(self, step, t, shown) or {}).get("latents", z)

        z = self._denoise(parts, noise, conds, stages, self._step_arguments(eta, generator), after_step)
        check_output(family.networks[0], z)

        chunk = family.frames_at_once(height, width) if decode_chunk_size == "auto" else decode_chunk_size
        if output_type == "latent":
            video: Any = z
        else:
            with part("decode latents"):
                decoded = family.decode(parts, z, chunk, request)
                check_output("vae", decoded)
                video = self.video_processor.postprocess_video(decoded, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImageAnimationPipelineOutput(frames=video) if return_dict else (video,)

    @property
    def text_width(self) -> int:
        """Width of the text encoder's hidden states; 0 where there is none."""
        return int(self.text_encoder.config.hidden_size) if self.family.takes_prompt else 0

    def prompt_length(self, prompt: str) -> PromptLength:
        """How many tokens a prompt has, and how many of them the text encoder reads."""
        if not self.family.takes_prompt:
            return PromptLength(0, 0)
        return measure(self.tokenizer, self.text_encoder, prompt, self.family.text_tokens)

    def _noise_and_picture(
        self, parts: Parts, request: Request, copies: int, latents: Tensor | None
    ) -> tuple[Tensor, Cond]:
        """Noise to start from, and the encoded pictures, for each clip, in the order in which the family draws them."""
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
                picture = {name: tensor.repeat_interleave(copies, dim=0) for name, tensor in picture.items()}
        return drawn() if first is None else first, picture

    def _denoise(
        self,
        parts: Parts,
        noise: Tensor,
        conds: Mapping[str, Cond],
        stages: Sequence[AnyGuidance],
        extra: dict[str, Any],
        after_step: Callable[[int, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Latents of clips, from noise.

        Args:
            conds: what the network is given, by guidance branch.
            stages: guidance of each of the family's networks.
            extra: further arguments of the scheduler's step.
            after_step: called with step, timestep and latents; what it gives is gone on with.
        """
        family, scheduler, first = self.family, self.scheduler, next(iter(conds.values()))
        # Euler's scheduler of flow matching scales nothing, and does not say so.
        scaled = getattr(scheduler, "scale_model_input", lambda latents, _: latents)
        predict = self._start({name: family.with_grid(parts, c, scheduler.timesteps) for name, c in conds.items()})
        z = family.initial(scheduler, noise, first)
        with self.progress_bar(total=len(scheduler.timesteps)) as progress:
            for i, t in enumerate(scheduler.timesteps):
                with part("step", step=i + 1):
                    guidance = stages[family.networks.index(family.network_at(parts, t))]
                    # Between the passes all is float32: in half precision the rounding of each step would add up.
                    predicted = guidance.combine(predict(scaled(z, t).to(parts.dtype), t, guidance).float())
                    z = family.hold(self._step(predicted, t, z, extra), first)
                z = after_step(i, t, z)
                progress.update()
        return z

    def _start(self, conds: Mapping[str, Cond]) -> Callable[[Tensor, Tensor, AnyGuidance], Tensor]:
        """Return the predictions of a guidance's branches, one after the other along the batch, for latents."""
        if self.family.stacks_branches:
            stacked = self._denoiser.start(stack(list(conds.values())))
            return lambda z, t, guidance: stacked(torch.cat([z] * guidance.passes), t)
        each = {name: self._denoiser.start(cond) for name, cond in conds.items()}
        return lambda z, t, guidance: torch.cat([each[name](z, t) for name in guidance.branches])

    def _step(self, predicted: Tensor, t: Tensor, z: Tensor, extra: dict[str, Any]) -> Tensor:
        """One step of the scheduler, `(batch, channels, frames, h, w)`."""
        if not self.family.steps_by_frame:
            return self._stepped(predicted, t, z, extra)
        # As the published pipelines have it: noise that a scheduler draws is laid out frame by frame.
        by_frame = [one.transpose(1, 2) for one in (predicted, z)]  # (batch, frames, channels, h, w)
        if isinstance(extra.get("generator"), list):
            return self._stepped(by_frame[0], t, by_frame[1], extra).transpose(1, 2)
        flat = [one.flatten(0, 1) for one in by_frame]  # (batch * frames, channels, h, w)
        stepped = self._stepped(flat[0], t, flat[1], extra)
        return cast(Tensor, stepped.unflatten(0, (z.shape[0], -1))).transpose(1, 2)

    def _stepped(self, predicted: Tensor, t: Tensor, z: Tensor, extra: dict[str, Any]) -> Tensor:
        if not extra.keys() >= KEPT_BETWEEN_STEPS:
            return cast(Tensor, self.scheduler.step(predicted, t, z, **extra).prev_sample)
        stepped, clip = self.scheduler.step(predicted, timestep=t, sample=z, **extra, return_dict=False)
        extra.update(old_pred_original_sample=clip, timestep_back=t)
        return cast(Tensor, stepped)

    def _step_arguments(self, eta: float, generator: torch.Generator | list[torch.Generator] | None) -> dict[str, Any]:
        """Return what a scheduler's step is given beside prediction, timestep and sample, in a dictionary of the call's
        own: what CogVideoX's DPM-Solver keeps from one step to the next is in it.
        """
        accepted = inspect.signature(self.scheduler.step).parameters
        every = {"eta": eta, "generator": generator, **dict.fromkeys(KEPT_BETWEEN_STEPS)}
        return {name: value for name, value in every.items() if name in accepted}


@cache
def _pipeline_of(family: Family) -> type[ImageAnimationPipeline]:
    """The class of a family's pipelines. diffusers reads components and options from its constructor's signature."""

    def construct(self: Any, **given: Any) -> None:
        ImageAnimationPipeline.__init__(self, **given)

    def parameter(name: str, default: Any) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)

    required = [name for name in family.components if name not in family.optional]
    construct.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            *(parameter(name, inspect.Parameter.empty) for name in required),
            *(parameter(name, None) for name in family.optional),
            *(parameter(name, default) for name, default in family.options.items()),
            *(parameter(name, None) for name in OWN_SETTINGS),
        ]
    )
    members = {
        "family": family,
        "__init__": construct,
        "__module__": __name__,
        "_optional_components": list(family.optional),
        "model_cpu_offload_seq": family.offload_order,
    }
    return cast(type[ImageAnimationPipeline], type(ImageAnimationPipeline.__name__, (ImageAnimationPipeline,), members))
