"""`FamilyPipeline`: a checkpoint of any family as a pipeline of diffusers, which loads and saves it."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from diffusers import DiffusionPipeline
from diffusers.video_processor import VideoProcessor
from torch import nn

from . import call_arguments as arguments
from .components import STORED, load_components, with_moved_modules
from .diffusers_folder import OWN_SETTINGS, finish_index, has_only_variant, read_index
from .families import Family, Parts, check_guided, family_of_components, family_of_index
from .prompts import TextEncoding, check_tokenizer
from .sampling import Denoiser, PlainDenoiser, check_scheduler


class FamilyPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is untyped
    """The components of a checkpoint, with what a call takes by default.

    Each family has a subclass of its own, made when it is needed, whose signature names its components: so diffusers
    loads, moves, offloads and saves them.

    Attributes:
        family: of the subclass.
        denoiser: what predicts at each step. `pipeline.optimise` puts faster ones here, and takes them out again.
        text_encoding: where the text encoder waits, and how many prompts are remembered.
    """

    family: ClassVar[Family]

    def __new__(cls, *_args: Any, **given: Any) -> Self:
        kind = cls if hasattr(cls, "family") else _class_of(cls, family_of_components(given))  # type: ignore[arg-type]  # a class is hashable
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
        check_scheduler(components["scheduler"], flow=family.flow)
        network = components[family.networks[0]]
        if (limits := settings["guidance_range"]) is not None:
            check_guided(network, limits, settings["distilled_guidance_scale"])
            settings["guidance_range"] = list(limits)
        self.denoiser: Denoiser = PlainDenoiser(self)
        self.text_encoding = TextEncoding()
        self.register_modules(**components)
        self.register_to_config(**options)
        defaults = family.defaults_of(self.parts)
        of_family = {
            "num_inference_steps": defaults.steps,
            "guidance_scale": defaults.guidance_scale,
            "num_frames": defaults.frames,
            "fps": defaults.fps,
        }
        chosen = {name: of_family.get(name) if value is None else value for name, value in settings.items()}
        self.register_to_config(**chosen)
        self.video_processor = VideoProcessor(do_resize=False)

    @property
    def network(self) -> Any:
        """The network, of diffusers' `ModelMixin`; of two for different noise levels, the first."""
        return getattr(self, self.family.networks[0])

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks of all noise levels."""
        found = (getattr(self, name) for name in self.family.networks)
        return tuple(network for network in found if network is not None)

    @property
    def parts(self) -> Parts:
        """The components as a family takes them, with where they compute."""
        components = {name: getattr(self, name) for name in self.family.components}
        options = {name: self.config[name] for name in self.family.options}
        return Parts(components, options, self._computes_on, self.network.dtype)

    def _computes_on(self) -> torch.device:
        # diffusers takes the device of the first component, which a text encoder that waits elsewhere is not.
        offloads = self.text_encoding.placement == "offload"
        device: torch.device = self.network.device if offloads else self._execution_device
        return device

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels of a clip when a call names none."""
        defaults = self.family.defaults_of(self.parts)
        return self.config.height or defaults.height, self.config.width or defaults.width

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load as `DiffusionPipeline.from_pretrained` does; where there are fp16 files alone, no `variant` is needed.

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
        kind = _class_of(cls, family_of_index(index))  # type: ignore[arg-type]
        folder = Path(source)
        if not folder.is_dir():
            folder = Path(kind.download(source, **kwargs))
        arguments.check_index(kind.family, index, folder, kwargs)
        components = load_components(kind, folder, kwargs, device)
        if kwargs.get("dtype") == STORED:
            del kwargs["dtype"]
        # What diffusers' reader of this class finds in the index is the family's; `own` is what it passes over.
        pipe = super(FamilyPipeline, kind).from_pretrained(str(folder), **components, **{**own, **kwargs})
        if kind.family.takes_prompt:
            where = None if "tokenizer" in kwargs else folder / "tokenizer"
            check_tokenizer(pipe.tokenizer, pipe.text_encoder, where, kind.family.text_tokens)
        return cast(Self, pipe)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Do as diffusers does, without what this project once wrote otherwise."""
        known = {*cls.family.components, *cls.family.options, *OWN_SETTINGS}
        index = {name: value for name, value in config_dict.items() if name in known or value != [None, None]}
        return super().extract_init_dict(with_moved_modules(index), **kwargs)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save as diffusers' own class of the family does, which reads it back."""
        super().save_pretrained(save_directory, *args, **kwargs)
        self._finish_index(Path(save_directory))

    def save_index(self, folder: Path) -> None:
        """Write `model_index.json` alone, as `save_pretrained` does."""
        self.save_config(folder)
        self._finish_index(folder)

    def _finish_index(self, folder: Path) -> None:
        family = self.family
        finish_index(folder / "model_index.json", family.pipeline_class, (*OWN_SETTINGS, *family.own_options))


@cache
def _class_of(base: type[FamilyPipeline], family: Family) -> type[FamilyPipeline]:
    """Return the subclass for a family. diffusers reads components and options from its signature."""

    def construct(self: Any, **given: Any) -> None:
        base.__init__(self, **given)

    required = [name for name in family.components if name not in family.optional]
    arguments_of_it: dict[str, Any] = {
        **dict.fromkeys(required, inspect.Parameter.empty),
        **dict.fromkeys((*family.optional, *OWN_SETTINGS)),
        **family.options,
    }
    construct.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            *(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
                for name, default in arguments_of_it.items()
            ),
        ]
    )
    members = {
        "family": family,
        "__init__": construct,
        "__module__": base.__module__,
        "_optional_components": list(family.optional),
        "model_cpu_offload_seq": family.offload_order,
    }
    return cast(type[FamilyPipeline], type(base.__name__, (base,), members))
