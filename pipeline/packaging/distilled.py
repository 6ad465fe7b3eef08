"""Checkpoints with a student that others trained: their adapters merged, or their networks in place of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..console import tell
from ..errors import ModelError
from ..serve.manifest import MergedFile
from .lora import merge
from .lora_file import LoraFile

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline
    from ..model.families import Family
    from ..serve.engine import Animator

_OPTION = {"transformer": "--transformer", "transformer_2": "--transformer-2"}


@dataclass(frozen=True)
class Distilled:
    """What a student that others trained is made of.

    Attributes:
        loras: files merged into the first network, in order.
        loras_2: the same for the second one, for low noise levels, where a checkpoint has two.
        transformer, transformer_2: folders of whole networks, or of pipelines that hold them; None keeps the
            checkpoint's.
        shift: of the noise levels of flow matching; None keeps the checkpoint's.
        solver: "euler" takes first-order steps on that schedule, as few-step students of Wan are sampled where they
            were trained; None keeps the checkpoint's.
    """

    loras: Sequence[LoraFile] = ()
    loras_2: Sequence[LoraFile] = ()
    transformer: Path | None = None
    transformer_2: Path | None = None
    shift: float | None = None
    solver: Literal["euler"] | None = None
    timesteps: Sequence[float] = ()

    @property
    def changes_weights(self) -> bool:
        """Whether a network is not the checkpoint's any more."""
        return bool(self.loras or self.loras_2 or self.transformer or self.transformer_2)


def open_distilled(
    source: str, distilled: Distilled, device: str | None = None, *, stored: bool | None = None, **defaults: Any
) -> Animator:
    """Return an animator around a checkpoint with a student's weights and sampling.

    With `guidance_scale` 1 and weights that are not the checkpoint's, the student counts as one that has its guidance
    in its weights: a request can then choose neither guidance nor steps.

    Args:
        source, device, stored, defaults: as `open_checkpoint` has them.

    Raises:
        ModelError: a file does not fit the checkpoint, or the checkpoint has no such network or schedule.
        ValueError: a default is out of what the checkpoint can make.
    """
    from ..machine import default_device
    from ..serve.sources import open_checkpoint

    device = device or default_device()
    stored = device != "cpu" if stored is None else stored
    if distilled.timesteps:
        if distilled.shift is not None or distilled.solver is not None:
            raise ModelError("--timesteps: says where each step is; leave out --shift and --solver")
        if defaults.get("num_inference_steps") not in {None, len(distilled.timesteps)}:
            raise ModelError(f"--steps: is not {len(distilled.timesteps)}, the number of --timesteps; leave it out")
        defaults["num_inference_steps"] = len(distilled.timesteps)
    components = _networks(source, distilled, "stored" if stored else None, device)
    merged: list[MergedFile] = []

    def change(pipe: ImageAnimationPipeline) -> None:
        merged.extend(_merge(pipe, distilled))
        if distilled.shift is not None or distilled.solver is not None or distilled.timesteps:
            pipe.register_modules(scheduler=_scheduler(pipe, distilled))
        if distilled.changes_weights and defaults.get("guidance_scale") == 1:
            own = pipe.family.defaults_of(pipe.parts).guidance_scale
            pipe.register_to_config(distilled_guidance_scale=own)

    animator = open_checkpoint(source, device, stored=stored, components=components, change=change, **defaults)
    animator.info = animator.info.changed(merged=[one.model_dump() for one in merged])
    return animator


def _networks(source: str, distilled: Distilled, dtype: Any, device: str) -> dict[str, Any]:
    """Load the networks that stand in place of the checkpoint's."""
    given = {"transformer": distilled.transformer, "transformer_2": distilled.transformer_2}
    if not any(given.values()):
        return {}
    family, has_two = _family(source)
    for name, folder in given.items():
        if folder is not None and name not in family.networks:
            raise ModelError(f"{_OPTION[name]}: a checkpoint of the {family.name} family has no {name}")
    if has_two != bool(given["transformer_2"]) or (has_two and not given["transformer"]):
        raise ModelError(
            _one_of_two(given) if has_two else "--transformer-2: this checkpoint has one network; leave it out"
        )
    from ..model.components import load_network

    return {
        name: load_network(name, _folder_of(folder, name), family.components[name], dtype, device)
        for name, folder in given.items()
        if folder is not None
    }


def _one_of_two(given: dict[str, Path | None]) -> str:
    there, missing = ("transformer", "transformer_2") if given["transformer"] else ("transformer_2", "transformer")
    return (
        f"{_OPTION[there]}: this checkpoint has two experts, and a student of one cannot go on from a teacher of the "
        f"other; give {_OPTION[missing]} FOLDER too"
    )


def _folder_of(folder: Path, name: str) -> Path:
    """Return the folder of a network: the one that is given, or its place in a pipeline's folder that is given."""
    if (folder / "config.json").is_file():
        return folder
    return next((folder / one for one in (name, "transformer") if (folder / one / "config.json").is_file()), folder)


def _family(source: str) -> tuple[Family, bool]:
    """Return a checkpoint's family, and whether it has a second network."""
    from ..model.animation import ImageAnimationPipeline
    from ..model.diffusers_folder import read_index
    from ..model.families import family_of_index

    index, _ = read_index(ImageAnimationPipeline, source, {})
    second = index.get("transformer_2") or (None, None)
    return family_of_index(index), second[1] is not None


def _merge(pipe: ImageAnimationPipeline, distilled: Distilled) -> list[MergedFile]:
    if not distilled.loras and not distilled.loras_2:
        return []
    names = [name for name in pipe.family.networks if getattr(pipe, name) is not None]
    if len(names) == 1 and distilled.loras_2:
        raise ModelError(f"--lora-2: this checkpoint has one network ({names[0]}); give the file with --lora")
    files = dict(zip(names, (distilled.loras, distilled.loras_2), strict=False))
    if len(names) == 2 and not all(files.values()):
        given, missing = ("--lora", "--lora-2") if distilled.loras else ("--lora-2", "--lora")
        raise ModelError(
            f"{given}: this checkpoint has two experts, and one of them is given nothing. --lora is for high noise "
            f"levels (transformer), --lora-2 for low ones (transformer_2): add {missing} FILE. For one expert alone, "
            f"give the other a file with scale 0: {missing} FILE:0"
        )
    merged = []
    for number, (name, own) in enumerate(files.items()):
        for file in own:
            _check_name(file, name, second=number == 1, two=len(names) == 2)
            merged.append(merge(getattr(pipe, name), file, name))
            tell(f"{file.path.name} at scale {file.scale:g}: {merged[-1].keys} weights of {name}")
    return merged


def _check_name(file: LoraFile, name: str, *, second: bool, two: bool) -> None:
    """Say so where a file is named after the other expert."""
    found = set(re.findall(r"high|low", file.path.name.lower()))
    if two and file.scale != 0 and found == ({"high"} if second else {"low"}):
        tell(f"{file.path.name}: named after the other expert, and merged into {name}; are the two files swapped?")


def _scheduler(pipe: ImageAnimationPipeline, distilled: Distilled) -> Any:
    """Return the checkpoint's scheduler with another shift, or Euler's steps on the same schedule."""
    from ..serve.store import shift_of

    scheduler, shift = pipe.scheduler, distilled.shift
    if not pipe.family.flow:
        raise ModelError(
            f"--shift, --solver, --timesteps: the {pipe.family.name} family has no noise levels of flow matching"
        )
    if distilled.timesteps:
        from ..model.renoising import RenoisingScheduler

        return RenoisingScheduler(list(distilled.timesteps), scheduler.config.num_train_timesteps)
    own = shift_of(scheduler)
    if own is None:
        raise ModelError(
            f"--shift and --solver: the scheduler of this checkpoint ({type(scheduler).__name__}) takes its shift from "
            "the size of a clip; they are for checkpoints with a fixed one"
        )
    shift = own if shift is None else shift
    if distilled.solver is None:
        name = "flow_shift" if "flow_shift" in scheduler.config else "shift"
        return type(scheduler).from_config(scheduler.config, **{name: shift})
    from diffusers import DPMSolverMultistepScheduler

    # Of first order and for a flow, DPM-Solver++ is Euler's step, on the grid that students of few steps were trained
    # on: uniform before the shift. FlowMatchEulerDiscreteScheduler lays another one, whose last level is the least.
    return DPMSolverMultistepScheduler(
        num_train_timesteps=scheduler.config.num_train_timesteps,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_order=1,
    )
