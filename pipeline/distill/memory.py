"""Training large networks in little memory: activations computed again, and LoRA on the teacher's own weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from ..optimise.base import Change, NotApplicable

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def checkpoint_blocks(network: nn.Module) -> Change:
    """Keep of each block its inputs alone, and compute the rest again when gradients pass through.

    diffusers' `I2VGenXLUNet` has no gradient checkpointing of its own. Memory for activations falls to
    about that of one block, and a training step takes about a third longer.

    Raises:
        NotApplicable: no `down_blocks`, `mid_block` and `up_blocks`.
    """
    parts: Any = network
    if not hasattr(network, "down_blocks") and getattr(network, "_supports_gradient_checkpointing", False):
        parts.enable_gradient_checkpointing()
        return Change("checkpointing", "as diffusers has it", parts.disable_gradient_checkpointing)
    try:
        blocks: list[Any] = [*parts.down_blocks, parts.mid_block, *parts.up_blocks]
    except (AttributeError, TypeError) as error:
        raise NotApplicable(f"checkpointing: {type(network).__name__} has no blocks that are known") from error

    def wrap(block: Any) -> None:
        inner = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return inner(*args, **kwargs)
            return checkpoint(inner, *args, use_reentrant=False, **kwargs)

        block.forward = forward

    for block in blocks:
        wrap(block)

    def undo() -> None:
        for block in blocks:
            del block.forward  # the class's own shows again

    return Change("checkpointing", f"activations of {len(blocks)} blocks are computed again", undo)


def add_lora(network: nn.Module, rank: int, whole: Collection[str] = ()) -> nn.Module:
    """Train low-rank additions to the attention layers instead of all weights (Hu et al. 2021).

    The network is changed in place; everything but the additions is frozen. They begin as zero, and are float32
    whatever the network is in.

    Args:
        whole: parameters that are trained as they are, by name.
    """
    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(_ATTENTION), init_lora_weights=True)
    injected: nn.Module = peft.inject_adapter_in_model(config, network)
    for name, parameter in injected.named_parameters():
        parameter.requires_grad_("lora_" in name or name in whole)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return injected


class SharedBase:
    """LoRA on a network that is the teacher's too: with its additions it is the student, without them the teacher.

    So a student of 14 billion weights trains in the memory of one copy. Outside `attached` the network is as it was
    before, and the teacher can be sampled, saved and distilled again.

    Args:
        networks: by name of the component; each is given additions, which are not attached yet.
        rank: of the additions.
    """

    def __init__(self, networks: Mapping[str, nn.Module], rank: int) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.networks = dict(networks)
        if any(isinstance(module, BaseTunerLayer) for one in networks.values() for module in one.modules()):
            raise ValueError("lora_rank: the teacher bears additions already; merge them, or close what trains them")
        self._places: list[tuple[nn.Module, str, Any]] = []
        for network in self.networks.values():
            add_lora(network, rank)
            for parent in network.modules():
                for name, child in parent.named_children():
                    if isinstance(child, BaseTunerLayer):
                        self._places.append((parent, name, child))
            del network.peft_config
        self._attached = True
        self._set(attached=False)

    @contextmanager
    def attached(self, *, on: bool = True) -> Iterator[None]:
        """Be the student inside, or the teacher where `on` is false; afterwards as before."""
        before = self._attached
        self._set(attached=on)
        try:
            yield
        finally:
            self._set(attached=before)

    def _set(self, *, attached: bool) -> None:
        if attached == self._attached:
            return
        for parent, name, layer in self._places:
            setattr(parent, name, layer if attached else layer.get_base_layer())
        self._attached = attached

    def merged(self, additions: Mapping[str, Tensor]) -> dict[str, nn.Module]:
        """Return copies of the networks on the processor, with the additions in their weights.

        Args:
            additions: whole tensors by name, as `Networks` names them: `networks.transformer....lora_A.default.weight`.
                FSDP may have spread the network: all processes have to ask.
        """
        from accelerate import init_empty_weights

        found = {}
        for component, network in self.networks.items():
            kind: Any = network
            with init_empty_weights(include_buffers=False):
                plain: nn.Module = type(kind).from_config(kind.config)
            state = {name: _on_cpu(tensor) for name, tensor in network.state_dict().items()}
            paths = {module: path for path, module in network.named_modules()}
            for parent, name, layer in self._places:
                if parent not in paths:
                    continue  # of the other network
                path = f"{paths[parent]}.{name}" if paths[parent] else name
                down, up = (additions[f"networks.{component}.{path}.lora_{x}.default.weight"].cpu() for x in "AB")
                weight = state[f"{path}.weight"]
                state[f"{path}.weight"] = (weight.float() + layer.scaling["default"] * up @ down).to(weight.dtype)
            plain.load_state_dict(state, assign=True)
            found[component] = plain.requires_grad_(requires_grad=False).eval()
        return found


def additions_alone(_models: list[nn.Module], weights: list[dict[str, Tensor]], _folder: str) -> None:
    """Leave out of a checkpoint what is the teacher's; accelerate calls it before it saves."""
    for state in weights:
        for name in [name for name in state if "lora_" not in name]:
            del state[name]


def _on_cpu(tensor: Tensor) -> Tensor:
    """Return a copy on the processor; whole, where FSDP has spread the tensor."""
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().to("cpu", copy=True)


def merge_lora(network: nn.Module) -> nn.Module:
    """Add what LoRA has learned to the weights, and leave the plain U-Net that it began as."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())
    if hasattr(network, "peft_config"):
        del network.peft_config
    return network
