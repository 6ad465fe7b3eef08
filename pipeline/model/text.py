"""Where a text encoder waits between requests, and what is remembered of the prompts that it has read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from .families import Cond

Placement = Literal["resident", "offload"]


@dataclass
class TextEncoding:
    """How prompts are encoded.

    Attributes:
        placement: "resident" keeps the text encoder where the network is; "offload" moves it there for a prompt, and
            back to the processor's memory after it: a text encoder of several gigabytes leaves room for the network,
            and each new prompt waits for two moves.
        remembered: prompts whose encoding is kept, in the processor's memory; the one that was not used for longest
            goes first. 0: none.
    """

    placement: Placement = "resident"
    remembered: int = 0
    _kept: OrderedDict[Hashable, Cond] = field(default_factory=OrderedDict, repr=False)

    def encode(self, key: Hashable, text_encoder: nn.Module, device: torch.device, compute: Callable[[], Cond]) -> Cond:
        """Return what `compute` returns, or returned for the same key before.

        Args:
            key: all that the encoding depends on.
            text_encoder: that `compute` calls.
            device: where it computes.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if self.placement == "offload":
            text_encoder.to(device)
        try:
            made = compute()
        finally:
            if self.placement == "offload":
                text_encoder.to("cpu")
        if self.remembered:
            self._kept[key] = {name: tensor.cpu() for name, tensor in made.items()}
            while len(self._kept) > self.remembered:
                self._kept.popitem(last=False)
        return made
