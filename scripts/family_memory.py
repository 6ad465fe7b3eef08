# ruff: noqa: INP001  # a script, no package
"""Adds up what published checkpoints need of a device's memory, from their configurations, without any weights.

    python scripts/family_memory.py

Weights are counted on PyTorch's meta device. What a request computes comes on top: it depends on size and length.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.quiet import quiet_libraries

BYTES = {"bf16": 2, "fp32": 4}


def parts() -> dict[str, dict[str, tuple[Callable[[], nn.Module], str]]]:
    """Return the components of each checkpoint with the precision that they run in.

    Configurations are those of the published `config.json` files.
    """
    import diffusers
    import transformers

    def wan(**config: Any) -> Callable[[], nn.Module]:
        return lambda: diffusers.WanTransformer3DModel(**config)

    def umt5() -> nn.Module:
        config = transformers.UMT5Config(
            vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64
        )
        return transformers.UMT5EncoderModel(config)

    def t5() -> nn.Module:
        config = transformers.T5Config(
            vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
        return transformers.T5EncoderModel(config)

    def vit_h(kind: Any) -> Callable[[], nn.Module]:
        config = transformers.CLIPVisionConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, image_size=224,
            patch_size=14, projection_dim=1024,
        )  # fmt: skip
        return lambda: kind(config)

    expert = wan(in_channels=36, out_channels=16)
    ti2v = wan(num_attention_heads=24, in_channels=48, out_channels=48, ffn_dim=14336, num_layers=30)
    clip = (vit_h(transformers.CLIPVisionModel), "fp32")
    svd_image = (vit_h(transformers.CLIPVisionModelWithProjection), "bf16")
    return {
        "Wan 2.1 I2V-14B": {
            "transformer": (wan(in_channels=36, out_channels=16, image_dim=1280, added_kv_proj_dim=5120), "bf16"),
            "text encoder": (umt5, "bf16"),
            "image encoder": clip,
            "autoencoder": (diffusers.AutoencoderKLWan, "fp32"),
        },
        "Wan 2.2 I2V-A14B": {
            "transformer": (expert, "bf16"),
            "transformer_2": (expert, "bf16"),
            "text encoder": (umt5, "bf16"),
            "autoencoder": (diffusers.AutoencoderKLWan, "fp32"),
        },
        "Wan 2.2 TI2V-5B": {
            "transformer": (ti2v, "bf16"),
            "text encoder": (umt5, "bf16"),
            "autoencoder": (_ti2v_vae, "fp32"),
        },
        "LTX-Video 0.9 2B": {
            "transformer": (diffusers.LTXVideoTransformer3DModel, "bf16"),
            "text encoder": (t5, "bf16"),
            "autoencoder": (diffusers.AutoencoderKLLTXVideo, "bf16"),
        },
        "SVD-XT": {
            "unet": (lambda: diffusers.UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20)), "bf16"),
            "image encoder": svd_image,
            "autoencoder": (lambda: diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2), "bf16"),
        },
    }  # fmt: skip


def _ti2v_vae() -> nn.Module:
    import diffusers

    return diffusers.AutoencoderKLWan(
        base_dim=160, decoder_base_dim=256, z_dim=48, in_channels=12, out_channels=12, is_residual=True, patch_size=2,
        latents_mean=[0.0] * 48, latents_std=[1.0] * 48, scale_factor_spatial=16, scale_factor_temporal=4,
        temperal_downsample=[False, True, True],
    )  # fmt: skip


def memory() -> dict[str, dict[str, tuple[float, float]]]:
    """Return billions of parameters and gigabytes of each component, by checkpoint."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for name, components in parts().items():
        found[name] = {}
        for part, (build, precision) in components.items():
            with torch.device("meta"):
                count = sum(parameter.numel() for parameter in build().parameters())
            found[name][part] = count / 1e9, count * BYTES[precision] / 1e9
    return found


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    quiet_libraries()
    lines = [
        "| checkpoint | parts, billions of parameters | all resident | text encoder offloaded |",
        "|---|---|---|---|",
    ]
    for name, components in memory().items():
        each = ", ".join(f"{part} {billions:.2f}" for part, (billions, _) in components.items())
        whole = sum(size for _, size in components.values())
        text = components.get("text encoder", (0.0, 0.0))[1]
        lines.append(f"| {name} | {each} | {whole:.1f} GB | {f'{whole - text:.1f} GB' if text else '-'} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
