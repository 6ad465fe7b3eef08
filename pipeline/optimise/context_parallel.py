"""One request's pass of a transformer spread over several processes, by diffusers' own plan.

Each rank has a share of the tokens. Attention among them needs all: an all-to-all trades "some tokens, all heads" for
"all tokens, some heads" before it, and back afterwards (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv 2309.14509).
diffusers has the exchange, and for each transformer a plan of what is split and gathered (`_cp_plan`).

`enable_parallelism` asks for an accelerator (on processors alone it divides by their number, zero), so what it does is
done here with the device that the network is on. Three things differ from diffusers' plans, which fail otherwise:

- LTX-Video's timesteps of each token are split with the tokens;
- attention to its text, whose mask is not split by heads, is computed whole by each rank for its own tokens, as Wan's;
- shares that differ are gathered with padding, since gloo gathers equal shapes alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel
from diffusers.models._modeling_parallel import ContextParallelInput, ParallelConfig
from torch import Tensor, nn

from ..model.families import Cond
from ..model.sampling import Denoiser, Predict
from .base import Change, NotApplicable, has_unet
from .prepared import runs_program
from .ranks import Ranks, ranks_for, shares
from .sequence_parallel import split_frames

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline


class ContextParallelDenoiser:
    """Runs a denoiser whose networks exchange tokens; each rank is given, and returns, the whole clip.

    Args:
        network: one of them, whose patches are tokens.
        config: of the exchange, which is told whether all shares are equal.
    """

    def __init__(self, inner: Denoiser, network: Any, ranks: Ranks, config: ContextParallelConfig) -> None:
        self.inner, self.ranks, self.config, own = inner, ranks, config, network.config
        patch = own.patch_size
        self.patch = math.prod(patch) if isinstance(patch, (list, tuple)) else patch**2 * own.patch_size_t
        self.heads, self.tokens = own.num_attention_heads, 0

    def start(self, cond: Cond) -> Predict:
        """Begin a request, the same one on all ranks.

        Raises:
            NotApplicable: there are fewer tokens than processes.
            RanksDiffer: the ranks were not given the same request, or differ in latents or timestep at a step.
        """
        ranks, predict = self.ranks, self.inner.start(cond)
        ranks.check_equal(dict(cond), next(iter(cond.values())).device)

        def shared(latents: Tensor, timestep: Tensor) -> Tensor:
            ranks.check_equal({"latents": latents, "timestep": timestep}, latents.device)
            tokens = self.tokens = math.prod(latents.shape[2:]) // self.patch
            if tokens < ranks.size:
                raise NotApplicable(f"context parallel: {tokens} tokens cannot be spread over {ranks.size} processes")
            # Shares that differ cost an exchange of their sizes in every layer.
            self.config.ulysses_anything = bool(tokens % ranks.size or self.heads % ranks.size)
            return predict(latents, timestep)

        return shared

    def gather(self, _module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return all tokens, `(batch, tokens, channels)`, after a layer that gave a rank's own."""
        return self.ranks.join(output, shares(self.tokens, self.ranks.size), dim=1)


def split_tokens(pipe: ImageAnimationPipeline) -> Change:
    """Spread the passes of a transformer over all processes; each must call this, and then animate the same.

    Raises:
        RanksDiffer: the ranks' networks are not the same.
    """
    name, networks = type(pipe.network).__name__, pipe.networks
    plans = [_plan_of(network) for network in networks]
    if not all(plans):
        raise NotApplicable(f"context parallel: diffusers has no plan for {name}")
    if isinstance(pipe.denoiser, ContextParallelDenoiser):
        raise NotApplicable("context parallel: it is in place already")
    if runs_program(pipe):
        raise NotApplicable("context parallel: a compiled or packaged program has taken the step module's place")
    ranks = ranks_for(pipe, "context parallel")
    heads, size = pipe.network.config.num_attention_heads, ranks.size
    each = math.ceil(heads / size)
    if each * size - heads >= each:  # diffusers pads the last ranks' heads, and none may have padding alone
        raise NotApplicable(f"context parallel: {heads} heads of attention cannot be spread over {size} processes")
    if size == 1:
        return Change("context parallel", "there is one process", lambda: None)
    device = pipe.network.device
    config = ContextParallelConfig(ulysses_degree=size)
    mesh = dist.device_mesh.init_device_mesh(device.type, config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    whole = ParallelConfig(context_parallel_config=config)
    whole.setup(ranks.rank, size, device, mesh=mesh)
    processors = [
        module.processor
        for network in networks
        for path, module in network.named_modules()
        if hasattr(getattr(module, "processor", None), "_parallel_config") and not path.endswith("attn2")
    ]
    for network, plan in zip(networks, plans, strict=True):
        apply_context_parallel(network, config, plan)
    before = pipe.denoiser
    pipe.denoiser = ContextParallelDenoiser(before, pipe.network, ranks, config)
    last = [network.get_submodule(name) for network in networks for name in _gathered(network)]
    hooks = [module.register_forward_hook(pipe.denoiser.gather) for module in last]

    def set_to(parallel: ParallelConfig | None) -> None:
        for processor in processors:
            processor._parallel_config = parallel  # noqa: SLF001

    set_to(whole)

    def undo() -> None:
        set_to(None)
        for hook in hooks:
            hook.remove()
        for network, plan in zip(networks, plans, strict=True):
            remove_context_parallel(network, plan)
        pipe.denoiser = before

    detail = f"tokens are spread over {size} processes, with an exchange in {len(processors)} layers"
    return Change("context parallel", detail, undo)


def share_passes(pipe: ImageAnimationPipeline) -> Change:
    """Spread the passes of a network over all processes: a transformer's tokens, or a U-Net's frames."""
    return split_frames(pipe) if has_unet(pipe) else split_tokens(pipe)


def _plan_of(network: Any) -> dict[str, Any]:
    """Return what is split, by the module that it goes into."""
    plan: dict[str, Any] = getattr(network, "_cp_plan", None) or {}
    if not plan:
        return {}
    own = {name: split for name, split in plan.get("", {}).items() if not name.startswith("encoder_")}
    split = {name: part for name, part in plan.items() if isinstance(part, dict)}
    return {**split, "": {**own, "timestep": ContextParallelInput(split_dim=1, expected_dims=2)}}


def _gathered(network: Any) -> list[str]:
    return [name for name, part in network._cp_plan.items() if not isinstance(part, dict)]  # noqa: SLF001
