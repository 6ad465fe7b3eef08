"""Changes that the benchmark and a package ask for by name: functions of diffusers and torchao, made undoable.

They trade memory, precision or a package that has to be installed for speed, so that a person chooses them. Each fits
the networks of any family that diffusers' function fits, and raises `NotApplicable` with the reason elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks import HookRegistry, apply_group_offloading
from diffusers.models import attention_dispatch
from torch import nn

from ..errors import first_line
from ..model.example import first_pass
from .base import Change, NotApplicable
from .prepared import runs_program
from .runtimes import compile_blocks, find_compiler
from .step_modules import is_entered
from .timing import seconds_of

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

Apply = Callable[["ImageAnimationPipeline"], Change]

_registry: Any = attention_dispatch._AttentionBackendRegistry  # noqa: SLF001  # diffusers lists its back ends here alone

_EXACT = ("native", "_native_cudnn", "_native_efficient", "_native_flash", "flash", "_flash_3")
"""Back ends that compute attention as PyTorch does, but for the order of sums; others round to eight bits."""

FLOAT8_CAPABILITY = (8, 9)
"""Compute capability of NVIDIA's GPUs from which on they multiply float8 (Ada, Hopper and later)."""


@dataclass(frozen=True)
class Named:
    """A change by its name.

    Attributes:
        note: what it does, for people.
        plain: whether the network's own modules have to run, and no program of TorchScript or AOTInductor for them.
        saves_memory: whether the network is changed before it is moved to the device, which need not hold it.
        decodes: whether it changes the decoder and not the network.
        compiles: whether programs are built at the first calls.
    """

    note: str
    apply: Apply
    plain: bool = False
    saves_memory: bool = False
    decodes: bool = False
    compiles: bool = False


# ------------------------------------------------------------------ attention


def attention_backends() -> list[str]:
    """Return the names of diffusers' attention back ends whose packages are here, without those it downloads."""
    here = []
    for backend in _registry.list_backends():
        try:
            attention_dispatch._check_attention_backend_requirements(backend)  # noqa: SLF001
        except RuntimeError:
            continue
        if not backend.value.endswith("_hub"):
            here.append(str(backend.value))
    return here


def attention_backend(pipe: ImageAnimationPipeline, backend: str) -> Change:
    """Compute attention of a transformer by a back end of diffusers (`set_attention_backend`); one pass tries it.

    diffusers names them (`native`, `flash`, `_flash_3`, `sage`, `flex`, ...); the ending `_hub` downloads a kernel.
    """
    name, here = type(pipe.network).__name__, "; there are " + ", ".join(attention_backends())
    processors = _processors(pipe)
    if not processors:
        raise NotApplicable(f"attention: {name} computes it by itself, without diffusers' back ends")
    if runs_program(pipe):
        raise NotApplicable("attention: a program runs the network, and has its back end")
    before, active = [one._attention_backend for one in processors], _registry.get_active_backend()[0]  # noqa: SLF001

    def undo() -> None:
        for processor, own in zip(processors, before, strict=True):
            processor._attention_backend = own  # noqa: SLF001

    try:
        for network in pipe.networks:
            network.set_attention_backend(backend)  # type: ignore[operator]
        _one_pass(pipe)()
    except Exception as error:  # unknown, not installed, not downloaded, or not for this device: each its own kind
        undo()
        reason = "is none of diffusers' back ends" if "must be one of" in str(error) else first_line(error).rstrip(".")
        raise NotApplicable(f"attention: {backend!r}: {reason}{here}") from error
    finally:
        _registry.set_active_backend(active)  # of the whole process, and other models are in it
    return Change("attention", f"{len(processors)} layers by {backend}", undo)


@torch.no_grad()
def fastest_backend(pipe: ImageAnimationPipeline) -> str:
    """Return the exact back end by which a pass of the first network is fastest here."""
    took: dict[str, float] = {}
    one_pass = _one_pass(pipe)
    for backend in [name for name in attention_backends() if name in _EXACT]:
        try:
            change = attention_backend(pipe, backend)
        except NotApplicable:
            if backend == "native":
                raise
            continue
        took[backend] = min(seconds_of(one_pass, 3, warm_up=1))
        change.undo()
    return min(took, key=lambda name: took[name])


def _processors(pipe: ImageAnimationPipeline) -> list[Any]:
    found = (getattr(module, "processor", None) for network in pipe.networks for module in network.modules())
    return [one for one in found if hasattr(one, "_attention_backend")]


def _one_pass(pipe: ImageAnimationPipeline) -> Callable[[], object]:
    """Return what calls the network as a request does at its first step."""
    latents, timestep, cond = first_pass(pipe)
    predict = pipe.denoiser.start(cond)
    return torch.no_grad()(lambda: predict(latents, timestep))


# ------------------------------------------------------------------ memory


def cast_storage(pipe: ImageAnimationPipeline) -> Change:
    """Keep the weights of large layers in float8, and cast each when it computes (`enable_layerwise_casting`)."""
    _refuse_program(pipe, "float8-storage")
    if pipe.network._skip_layerwise_casting_patterns is None:  # noqa: SLF001
        name = type(pipe.network).__name__
        raise NotApplicable(f"float8-storage: diffusers names no layers of {name} whose rounding would show")
    before = [(weight, weight.data) for network in pipe.networks for weight in network.parameters()]
    for network in pipe.networks:
        network.enable_layerwise_casting(torch.float8_e4m3fn, pipe.network.dtype)  # type: ignore[operator]

    def undo() -> None:
        for network in pipe.networks:
            for module in network.modules():
                registry = getattr(module, "_diffusers_hook", None)
                if registry is not None and (hook := registry.get_hook("layerwise_casting")) is not None:
                    hook.deinitalize_hook = lambda module: module  # it refuses, since it keeps no weights; we did
                    registry.remove_hook("layerwise_casting", recurse=False)
        for weight, data in before:
            weight.data = data

    cast = sum(weight.numel() for weight, _ in before if weight.dtype == torch.float8_e4m3fn)
    return Change(
        "float8-storage", f"{cast / sum(w.numel() for w, _ in before):.0%} of the weights are kept in float8", undo
    )


def offload_blocks(pipe: ImageAnimationPipeline, device: torch.device | None = None) -> Change:
    """Keep the networks in the processor's memory, and move a block to the device when it computes.

    diffusers' `apply_group_offloading`; on a GPU the next block moves while this one computes.

    Args:
        device: where blocks compute; None: where the pipeline does.
    """
    _refuse_program(pipe, "offload")
    if device is None and pipe.device.type == "cpu":
        raise NotApplicable("offload: there is no GPU here, and the networks are in the processor's memory")
    if is_entered(pipe.network):  # hooks around a block do not see that its keys are computed once a request
        name = type(pipe.network).__name__
        raise NotApplicable(f"offload: layers of {name} compute outside their blocks, once a request")
    device = device or pipe.device
    try:
        for network in pipe.networks:
            apply_group_offloading(network, device, num_blocks_per_group=1, use_stream=device.type == "cuda")
    except ValueError as error:  # hooks of another kind of offloading are in place
        raise NotApplicable(f"offload: {first_line(error)}") from error

    def undo() -> None:
        for network in pipe.networks:
            registry = HookRegistry.check_if_exists_or_initialize(network)
            for hook in ("layer_execution_tracker", "lazy_prefetch_group_offloading", "group_offloading"):
                registry.remove_hook(hook, recurse=True)
            network.to(device)

    return Change("offload", f"blocks of {len(pipe.networks)} networks move to {device} when they compute", undo)


def quantise(pipe: ImageAnimationPipeline, *, dynamic: bool) -> Change:
    """Compute large linear layers in float8 by torchao: weights with a scale a row, and activations where `dynamic`.

    Layers that diffusers keeps out of its own casting (norms, embeddings) stay as they are.
    """
    name, device = "float8" if dynamic else "float8-weights", pipe.device
    _refuse_program(pipe, name)
    if dynamic and device.type != "cuda":
        raise NotApplicable(f"{name}: multiplies float8 on a GPU, and this is {device}")
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < FLOAT8_CAPABILITY:
        least = ".".join(map(str, FLOAT8_CAPABILITY))
        raise NotApplicable(f"{name}: this GPU has compute capability {found[0]}.{found[1]}; it takes {least} or later")
    try:
        from torchao.quantization import (  # type: ignore[import-not-found,unused-ignore]
            Float8DynamicActivationFloat8WeightConfig,
            Float8WeightOnlyConfig,
            PerRow,
            quantize_,
        )
    except ImportError as error:
        raise NotApplicable(f"{name}: torchao is not installed; pip install 'stillmotion[float8]'") from error
    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()) if dynamic else Float8WeightOnlyConfig()
    layers = [layer for network in pipe.networks for layer in _linears(network, 16 if dynamic else 1)]
    if not layers:
        raise NotApplicable(f"{name}: {type(pipe.network).__name__} has no linear layers that it can be used for")
    before = [(layer, layer.weight) for layer in layers]

    def undo() -> None:
        for layer, weight in before:
            layer.weight = weight
            layer.__dict__.pop("extra_repr", None)  # torchao's, which describes its own weight

    try:
        for layer in layers:
            quantize_(layer, config)
        _one_pass(pipe)()
    except Exception as error:  # of torchao and its kernels, whose kinds are many
        undo()
        raise NotApplicable(f"{name}: {first_line(error)}") from error
    return Change(name, f"{len(layers)} linear layers in float8", undo)


def _linears(network: nn.Module, divisor: int) -> list[nn.Linear]:
    """Return linear layers whose sides divide, as float8's units want, without those that diffusers does not cast."""
    kept = ("norm", "embed", *(getattr(network, "_skip_layerwise_casting_patterns", None) or ()))
    kept += tuple(getattr(network, "_keep_in_fp32_modules", None) or ())
    return [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        and not (module.in_features % divisor or module.out_features % divisor)
        and not any(part in name for part in kept)
    ]


def _refuse_program(pipe: ImageAnimationPipeline, name: str) -> None:
    if runs_program(pipe):
        raise NotApplicable(f"{name}: a traced or compiled program runs the network with the weights it was made for")


def _compile_blocks(pipe: ImageAnimationPipeline) -> Change:
    find_compiler()
    return compile_blocks(pipe)


# ------------------------------------------------------------------ the decoder


def tile_decoder(pipe: ImageAnimationPipeline, **sides: int) -> Change:
    """Decode in overlapping tiles (`enable_tiling`), which are blended; large pictures are encoded so too.

    Args:
        sides: of diffusers' `enable_tiling`, such as `tile_sample_min_height`; left out, as the class has them.
    """
    vae, (height, width), kind = pipe.vae, pipe.default_size, type(pipe.vae).__name__
    settings = {name: value for name, value in vars(vae).items() if name.startswith(("tile_", "use_tiling"))}
    if "use_tiling" not in settings:
        raise NotApplicable(f"tiling: {kind} has no tiles")
    vae.enable_tiling(**sides)
    least = [getattr(vae, f"tile_sample_min_{side}", None) or vae.tile_sample_min_size for side in ("height", "width")]

    def undo() -> None:
        vae.__dict__.update(settings)

    if height <= least[0] and width <= least[1]:
        undo()
        size = f"{height} x {width} pixels are no more than a tile of {least[0]} x {least[1]}"
        raise NotApplicable(f"tiling: frames of {size}")
    return Change("tiling", f"tiles of {least[0]} x {least[1]} pixels", undo)


NAMED: Mapping[str, Named] = {
    "float8-storage": Named(
        "weights kept in float8, cast layer by layer when they compute", cast_storage, plain=True, saves_memory=True
    ),
    "offload": Named(
        "blocks in the processor's memory, moved when they compute", offload_blocks, plain=True, saves_memory=True
    ),
    "float8": Named("linear layers multiplied in float8 (torchao)", partial(quantise, dynamic=True), plain=True),
    "float8-weights": Named(
        "weights of linear layers in float8 (torchao)", partial(quantise, dynamic=False), plain=True
    ),
    "compile-blocks": Named(
        "torch.compile of the repeated blocks, which share a program", _compile_blocks, plain=True, compiles=True
    ),
    "tiling": Named("frames decoded in overlapping tiles", tile_decoder, decodes=True),
}
"""Changes by name, beside `attention:BACKEND`."""

ATTENTION = "attention:"


def saves_memory(names: Sequence[str]) -> bool:
    """Return whether one of the changes has to be in place before weights are moved to the device.

    Raises:
        ValueError: as `named`.
    """
    return any(change.saves_memory for change in [named(name) for name in names])


def in_order(names: Sequence[str]) -> list[str]:
    """Return names of changes in the order in which they go together: what is compiled last computes as the others say.

    Raises:
        ValueError: as `named`.
    """
    for name in names:
        named(name)
    order = list(NAMED)
    return sorted(names, key=lambda name: order.index(name) if name in NAMED else -1)


def check_runtime(names: Sequence[str], runtime: str) -> None:
    """Refuse changes that do not go with a package's runtime.

    Raises:
        ValueError: as `named`, or where a program holds what the change would put in its place.
    """
    for name in names:
        if named(name).plain and runtime in {"torchscript", "aot", "auto"}:
            raise ValueError(
                f"optimisations: {name} changes modules of the network, and runtime {runtime} has a program in their "
                "place; take runtime eager or compile"
            )


def named(name: str) -> Named:
    """Return a change by its name.

    Raises:
        ValueError: there is none of this name; the text has those that there are.
    """
    if name.startswith(ATTENTION):
        backend = name.removeprefix(ATTENTION)
        return Named(f"attention of a transformer by {backend}", partial(attention_backend, backend=backend))
    if name not in NAMED:
        raise ValueError(f"optimisations: {name!r} is not one of {', '.join(NAMED)}, {ATTENTION}BACKEND")
    return NAMED[name]
