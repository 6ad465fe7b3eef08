"""Attention by the back end that is fastest for each shape, found by measurement.

PyTorch chooses one back end of `scaled_dot_product_attention` for all shapes, by a fixed order. A
video U-Net has very unlike ones: thousands of positions that attend to each other, the same positions that
attend to a hundred tokens of context, and tens of thousands of rows of sixteen frames each.

The back ends are called by their own operations. `torch.nn.attention.sdpa_kernel` would do when
PyTorch runs eagerly, but `torch.export` and `torch.jit.trace` record the plain
`scaled_dot_product_attention` under it, so that a program compiled from there has lost the choice.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from .base import Change, NotApplicable
from .context import Attend, ClipAttnProcessor, check_plain
from .prepared import prepared_denoisers
from .runtimes import example_of
from .timing import seconds_of

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

Backend = Literal["cudnn", "flash", "efficient", "math", "tiny"]
"""Back ends of scaled dot-product attention: PyTorch's four, and our own for short rows (`tiny`)."""

BACKENDS: tuple[Backend, ...] = get_args(Backend)

_aten: Any = torch.ops.aten


@dataclass(frozen=True)
class AttentionShape:
    """Queries `(batch, heads, queries, head_dim)`, keys and values `(batch, heads, keys, head_dim)`."""

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int

    @classmethod
    def of(cls, query: Tensor, key: Tensor) -> AttentionShape:
        return cls(query.shape[0], query.shape[1], query.shape[2], key.shape[2], query.shape[3])

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Queries, keys and head_dim: what a back end is chosen by, so that it holds for any batch."""
        return self.queries, self.keys, self.head_dim


def tiny(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute attention of short rows as products and sums that a compiler fuses, without a matrix multiplication.

    Every product is spelt out, `queries * keys * head_dim` of them a head, so eager PyTorch needs as much memory: for
    compiled programs only. Shapes are those of `attend`; sums are in float32.
    """
    scaled = query.float() * query.shape[-1] ** -0.5
    scores = (scaled[:, :, :, None] * key.float()[:, :, None]).sum(-1)  # (batch, heads, queries, keys)
    weights = scores.softmax(-1)
    attended: Tensor = (weights[..., None] * value.float()[:, :, None]).sum(-2)
    return attended.to(query.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, backend: Backend | None) -> Tensor:
    """Compute attention by one back end; None: by the one PyTorch chooses.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key, value: `(batch, heads, keys, head_dim)`.

    Raises:
        RuntimeError: the back end refuses the shape, the type or the device.
    """
    if backend is None:
        return F.scaled_dot_product_attention(query, key, value)
    if backend == "tiny":
        return tiny(query, key, value)
    if backend == "math":
        return cast(Tensor, _aten._scaled_dot_product_attention_math(query, key, value)[0])  # noqa: SLF001
    if backend == "flash":
        cpu = query.device.type == "cpu"
        own = "_scaled_dot_product_flash_attention_for_cpu" if cpu else "_scaled_dot_product_flash_attention"
        return cast(Tensor, getattr(_aten, own)(query, key, value)[0])
    own = f"_scaled_dot_product_{backend}_attention"
    return cast(Tensor, getattr(_aten, own)(query, key, value, None, False)[0])  # noqa: FBT003  # no log-sum for gradients


class ChosenAttnProcessor:
    """diffusers' `AttnProcessor2_0` without masks, its attention computed by `attend`.

    Args:
        plain: the processor in whose place it stands, for calls with a mask or of images.
    """

    def __init__(self, attend: Attend, plain: Any) -> None:
        self.attend, self.plain = attend, plain

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # (rows, tokens, channels)
        encoder_hidden_states: Tensor | None = None,  # (rows, tokens, width)
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if attention_mask is not None or hidden_states.ndim != 3:
            return cast(Tensor, self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs))
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        projected = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in projected)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        hidden = self.attend(query, key, value).transpose(1, 2).flatten(2)  # (rows, tokens, channels)
        hidden = attn.to_out[1](attn.to_out[0](hidden))
        if attn.residual_connection:
            hidden = hidden + hidden_states
        # A division by one would still read and write all of it.
        return cast(Tensor, hidden if attn.rescale_output_factor == 1 else hidden / attn.rescale_output_factor)


def choose_attention(unet: nn.Module, backends: Mapping[AttentionShape, Backend] | None = None) -> Change:
    """Compute every attention layer of a U-Net by the back end chosen for its shape.

    Apply it after `fold_context` or `prepare_once`, whose layers keep their way of working, and after
    the precision has been set.

    Args:
        backends: as `measure_attention` gives them. A shape is looked up by its lengths and head_dim; of
            one that is not there PyTorch chooses, and so of all where it is None.
    """
    chosen = {shape.lengths: backend for shape, backend in (backends or {}).items()}

    def by_shape(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, chosen.get(AttentionShape.of(query, key).lengths))

    undo, count = _install(unet, by_shape)
    by = "; ".join(f"{queries} x {keys} x {dim} by {one}" for (queries, keys, dim), one in chosen.items())
    return Change("attention", f"{count} layers: {by or 'as PyTorch chooses'}", undo)


def attention_shapes(unet: nn.Module, call: Callable[[], object]) -> list[AttentionShape]:
    """Return the shapes of attention in a call of the network, each once, in the order they come in.

    Args:
        call: runs the U-Net on real inputs.
    """
    seen: dict[AttentionShape, None] = {}

    def look(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen[AttentionShape.of(query, key)] = None
        return F.scaled_dot_product_attention(query, key, value)

    undo, _ = _install(unet, look)
    try:
        call()
    finally:
        undo()
    return list(seen)


def measure_attention(
    shapes: Iterable[AttentionShape],
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    compiled: bool = False,
    repeats: int = 5,
) -> dict[AttentionShape, Backend]:
    """Return the fastest back end of each shape; a shape that all refuse is left out.

    Shapes of the same lengths get the same back end, the one that is fastest for all of them together.

    Args:
        compiled: for programs that are compiled: `tiny` is measured under `torch.compile`. All that was
            compiled before in this process is forgotten, and built again when it is next called.
    """
    took = {shape: time_backends(shape, device, dtype, compiled=compiled, repeats=repeats) for shape in shapes}
    chosen: dict[AttentionShape, Backend] = {}
    for shape in took:
        alike = [times for other, times in took.items() if other.lengths == shape.lengths]
        together = {backend: sum(t[backend] for t in alike) for backend in alike[0] if all(backend in t for t in alike)}
        if together:
            chosen[shape] = min(together, key=lambda backend: together[backend])
    return chosen


@torch.no_grad()
def fastest_backends(pipe: ImageAnimationPipeline, *, compiled: bool = False) -> dict[AttentionShape, Backend]:
    """Return the back end that is fastest here for each shape of a default request, as `measure_attention` has it."""
    example, step = example_of(pipe), prepared_denoisers(pipe)[0].module
    shapes = attention_shapes(pipe.network, lambda: step(*example.inputs))
    return measure_attention(shapes, pipe.device, pipe.network.dtype, compiled=compiled)


@torch.no_grad()
def time_backends(
    shape: AttentionShape,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    compiled: bool = False,
    repeats: int = 5,
) -> dict[Backend, float]:
    """Return the seconds of each back end that takes the shape, the median of several calls."""
    device = torch.device(device)

    def made(length: int, seed: int) -> Tensor:  # as a projection gives it, heads side by side
        generator = torch.Generator(device).manual_seed(seed)
        size = (shape.batch, length, shape.heads, shape.head_dim)
        return torch.randn(size, generator=generator, device=device, dtype=dtype).transpose(1, 2)

    inputs = made(shape.queries, 0), made(shape.keys, 1), made(shape.keys, 2)
    took: dict[Backend, float] = {}
    for backend in BACKENDS:
        # Short rows are what it is for; spelt out, the products of others would fill any memory.
        if backend == "tiny" and shape.queries * shape.keys > _TINY_PAIRS:
            continue
        # The others are single kernels, which a compiler calls as eager PyTorch does.
        building = compiled and backend == "tiny"
        run: Callable[..., Tensor] = torch.compile(attend, dynamic=False) if building else attend
        # Kernels are short on a GPU: what it takes to start one is not to be seen.
        number = 10 if device.type == "cuda" else 1
        try:  # the first call builds, the second finds its memory
            seconds = seconds_of(lambda: run(*inputs, backend), repeats, number, warm_up=2)  # noqa: B023  # called here
            took[backend] = statistics.median(seconds)
        except RuntimeError:  # "No available kernel", "not implemented", or out of memory
            continue
        finally:
            if building:
                torch.compiler.reset()  # or the next shapes would pass its limit of programs for one function
    return took


_TINY_PAIRS = 64 * 64


def _install(unet: nn.Module, attend: Attend) -> tuple[Callable[[], None], int]:
    """Let all attention layers compute by `attend`; return what takes it back, and how many they are."""
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}
    if not layers:
        raise NotApplicable(f"attention: {type(unet).__name__} has no attention")
    for name, attn in layers.items():
        if isinstance(attn.processor, ChosenAttnProcessor):
            raise NotApplicable(f"attention: {name} has it already")
        if not isinstance(attn.processor, ClipAttnProcessor):
            check_plain("attention", name, attn)
    before = [(attn, attn.processor, getattr(attn.processor, "attend", None)) for attn in layers.values()]
    for attn, processor, _ in before:
        if isinstance(processor, ClipAttnProcessor):
            processor.attend = attend
        else:
            attn.set_processor(ChosenAttnProcessor(attend, processor))

    def undo() -> None:
        for attn, processor, own in before:
            if own is not None:
                processor.attend = own
            attn.set_processor(processor)

    return undo, len(layers)
