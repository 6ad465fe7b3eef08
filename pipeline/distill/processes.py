"""The processes that train together, as accelerate starts them, and what they have to agree on."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType

from ..machine import default_device
from .settings import DistillSettings
from .student import shares_base


def accelerator_for(settings: DistillSettings, networks: int) -> Accelerator:
    """Return accelerate's own view of the processes.

    Args:
        networks: how many the teacher has.
    """
    # accelerate keeps one state a process, and refuses a second run in another precision.
    AcceleratorState._reset_state()  # noqa: SLF001  # its own tests and those of transformers do the same
    return Accelerator(
        # Without this it starts no group of processes where there is no GPU.
        cpu=default_device() == "cpu",
        mixed_precision=settings.mixed_precision,
        # A batch may have no clip at the noise levels of one of two networks. Buffers are constants, such as Wan's
        # rotary embedding, and sending them at each call would need as many calls of each process.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=networks > 1, broadcast_buffers=False)],
    )


def is_sharded(accelerator: Accelerator, settings: DistillSettings) -> bool:
    """Return whether FSDP spreads the weights over the processes.

    Raises:
        ValueError: it does, in a way that this training cannot work with.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return False
    if not accelerator.is_fsdp2:
        raise ValueError("fsdp_version: 1 joins weights that are trained with weights that are not; use 2")
    if shares_base(settings) and settings.sample_every:
        raise ValueError("sample_every: FSDP spreads a teacher that shares its weights, and one process samples; use 0")
    return True


def on_any(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Return flags that are set on any process. All of them have to ask."""
    mine = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    return [bool(total) for total in accelerator.reduce(mine, reduction="sum").tolist()]
