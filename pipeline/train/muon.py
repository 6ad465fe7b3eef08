"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal before they are applied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at zero, and stays within 0.7 to 1.2 near one


class Muon(torch.optim.Optimizer):
    """As `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, but in single precision, and all matrices of a
    shape at once.

    PyTorch's own computes in bfloat16, which is a hundred times as slow as float32 on processors without units for it.

    Args:
        params: matrices.
        lr: learning rate; an update has the size that Adam's would have.
        momentum: of Nesterov's kind.
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Apply the gradients."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    of_shape[parameter.shape].append(parameter)
            for shape, parameters in of_shape.items():
                updates = torch.stack([self._moved(parameter, group["momentum"]) for parameter in parameters])
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, orthogonal(updates), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)
        return loss

    def _moved(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Return the gradient with its momentum."""
        assert parameter.grad is not None
        state, gradient = self.state[parameter], parameter.grad.float()
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return U V^T of each matrix U S V^T of `(count, rows, columns)`, with singular values of about one, by
    Newton-Schulz iteration.
    """
    a, b, c = _QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return cast(Tensor, x.mT if tall else x)
