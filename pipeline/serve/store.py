"""Packaged models: a diffusers folder with `animator.json`, kept in the BentoML model store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..machine import dtype_name, sha256_of
from .manifest import INFO_FILE, PROGRAMS_FOLDER, ModelInfo

if TYPE_CHECKING:
    import bentoml

    from ..model.animation import ImageAnimationPipeline

MODEL_NAME = "animator"

# Of a model's folder these may be shipped; anything else (pickles above all) can run code on load.
_SUFFIXES = (".json", ".safetensors", ".txt", ".md", ".model")
_CHAT_TEMPLATE = "tokenizer/chat_template.jinja"  # of HunyuanVideo-1.5; transformers renders it in a sandbox
# Programs run code by their nature: in their own folder alone, and each against its digest.
_PROGRAM_SUFFIX = ".pt2"


def describe(pipe: ImageAnimationPipeline, teacher: str, metrics: Mapping[str, float | int | str | None]) -> ModelInfo:
    """Return `animator.json` of a pipeline, without digests."""
    from ..model.controls import Control
    from ..model.guidance import Guidance  # needs PyTorch, which reading a package does not
    from ..model.sampling import evaluations

    config, family, parts = pipe.config, pipe.family, pipe.parts
    guidance = Guidance(config.guidance_scale, config.image_guidance_scale)
    distilled = config.distilled_guidance_scale is not None
    count = evaluations(pipe.scheduler, config.num_inference_steps)
    step = family.frame_step(parts)
    controls = dict(family.controls_of(parts))
    about = "how much the prompt counts" if family.takes_prompt else "how much the picture counts"
    if config.guidance_range is not None:
        least, most = config.guidance_range
        controls["guidance_scale"] = Control(least, most, config.distilled_guidance_scale, about=about)
    elif not distilled and guidance.passes > 1:
        controls["guidance_scale"] = Control(1, 30, config.guidance_scale, about=about)
    return ModelInfo(
        teacher=teacher,
        family=family.name,
        steps=config.num_inference_steps,
        evaluations=count,
        passes=count * guidance.passes,
        guidance_scale=config.distilled_guidance_scale if distilled else config.guidance_scale,
        image_guidance_scale=config.distilled_image_guidance_scale if distilled else config.image_guidance_scale,
        guidance_distilled=distilled,
        runtime="eager",
        precision=precision_of(pipe),
        frames=config.num_frames,
        least_frames=min(2 if step == 1 else step + 1, config.num_frames),
        most_frames=config.num_frames,
        frame_step=step,
        sizes=family.sizes(parts, *pipe.default_size),
        fps=config.fps,
        scheduler=type(pipe.scheduler).__name__,
        shift=shift_of(pipe.scheduler),
        controls=controls,
        takes_prompt=family.takes_prompt,
        takes_negative_prompt=family.takes_prompt and guidance.passes > 1,
        takes_last_image=family.last_image(parts) != "never",
        needs_last_image=family.last_image(parts) == "always",
        # A student knows the steps that it was trained for alone.
        most_steps=None if distilled else 100,
        metrics=dict(metrics),
    )


def shift_of(scheduler: Any) -> float | None:
    """Return the shift of a scheduler's noise levels; None without one, or where it depends on a clip's size."""
    config = scheduler.config
    flow = config.get("use_flow_sigmas") or type(scheduler).__name__.startswith("FlowMatch")
    if not flow or config.get("use_dynamic_shifting"):
        return None
    return float(config.get("flow_shift", config.get("shift", 1.0)))


def precision_of(pipe: ImageAnimationPipeline) -> dict[str, str]:
    """Return the precision of the network as "default", and of each component that has another."""
    from torch import nn

    modules: dict[str, Any] = {key: part for key, part in pipe.components.items() if isinstance(part, nn.Module)}
    kinds = {key: dtype_name(part.dtype) for key, part in modules.items()}
    default = dtype_name(pipe.network.dtype)
    return {"default": default, **{key: kind for key, kind in kinds.items() if kind != default}}


def write_package(
    pipe: ImageAnimationPipeline, folder: Path, info: ModelInfo, card: str, programs: Path | None = None
) -> ModelInfo:
    """Write a packaged model: weights, card and `animator.json` with the digest of each file.

    Args:
        programs: folder of programs compiled ahead of time that go into the package.
    """
    pipe.save_pretrained(folder, safe_serialization=True)
    forget_paths(folder)
    if programs is not None:
        shutil.copytree(programs, folder / PROGRAMS_FOLDER)
    (folder / "README.md").write_text(card, encoding="utf-8")
    info = info.changed(files=digests(folder))
    (folder / INFO_FILE).write_text(info.to_json(), encoding="utf-8")
    for path in (folder, *folder.rglob("*")):
        # safetensors writes files that only their owner can read, and BentoML makes such a folder; a container
        # runs as another user.
        path.chmod(0o755 if path.is_dir() else 0o644)
    return info


def forget_paths(folder: Path) -> None:
    """Take out of a saved pipeline's configurations where it was loaded from, which is a path of one machine."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_to_store(
    pipe: ImageAnimationPipeline,
    info: ModelInfo,
    card: str,
    programs: Path | None = None,
    check: Callable[[Path, str], None] | None = None,
) -> bentoml.Model:
    """Put a model into the BentoML store as `animator:<new version>`.

    Args:
        check: called with the written package's folder and its tag before the store has it; what it raises
            leaves the store as it was. So nobody who asks for the latest version is given one that is not checked.

    Other arguments as `write_package` has them.
    """
    import bentoml

    labels = {"family": info.family, "runtime": info.runtime, "precision": info.dtype}
    with bentoml.models.create(
        MODEL_NAME, labels=labels, metadata={"steps": info.steps, "passes": info.passes}
    ) as model:
        write_package(pipe, Path(model.path), info, card, programs)
        if check is not None:
            check(Path(model.path), str(model.tag))
    # Inside the block `path` is a temporary folder; ask again for the place where it came to rest.
    return bentoml.models.get(model.tag)


def resolve(tag_or_folder: str) -> tuple[str, Path]:
    """Return name and folder of a packaged model, from a folder's path or a tag in the store.

    Raises:
        ModelError: neither a folder nor in the store.
    """
    folder = Path(tag_or_folder)
    if tag_or_folder and folder.is_dir():  # no text at all would be the folder that we are in
        return folder.name, folder
    import bentoml
    from bentoml.exceptions import BentoMLException

    try:
        model = bentoml.models.get(tag_or_folder)
    except (BentoMLException, ValueError) as error:
        raise ModelError(
            f"{tag_or_folder}: neither a folder nor a model in the BentoML store; "
            "`make demo` or `python -m pipeline run --preset tiny` makes one"
        ) from error
    return str(model.tag), Path(model.path)


def digests(folder: Path) -> dict[str, str]:
    """Return SHA-256 of each file but `animator.json` itself, by its path in the folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (INFO_FILE, "model.yaml"):  # BentoML adds model.yaml
            found[name] = sha256_of(path)
    return found


def verify(folder: Path) -> ModelInfo:
    """Check a packaged model against its digests.

    Raises:
        ModelError: a file is missing, changed, new, or of a kind that could run code.
    """
    info = ModelInfo.read(folder)
    found = digests(folder)
    for name in sorted(info.files.keys() | found.keys()):
        if name not in found:
            raise ModelError(f"{folder}: {name} is missing; package the model again")
        if name not in info.files:
            raise ModelError(f"{folder}: {name} is not in {INFO_FILE}; package the model again")
        if found[name] != info.files[name]:
            raise ModelError(f"{folder}: {name} has been changed or damaged since it was packaged (SHA-256 differs)")
        is_program = info.runtime == "aot" and name.startswith(f"{PROGRAMS_FOLDER}/") and name.endswith(_PROGRAM_SUFFIX)
        if not (name.endswith(_SUFFIXES) or name == _CHAT_TEMPLATE or is_program):
            raise ModelError(f"{folder}: {name} is of a kind that a model may not hold")
    return info
