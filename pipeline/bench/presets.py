"""Models that `pipeline bench` measures: the shipped teacher, or random weights of a published size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..machine import default_device

if TYPE_CHECKING:
    from diffusers import DDIMScheduler
    from transformers import CLIPImageProcessor, CLIPTokenizer

    from ..model.animation import ImageAnimationPipeline

PRESETS = ("tiny", "i2vgen-xl", "wan-ti2v-5b", "wan-a14b")

_FRAMES, _SIDE = 16, 512

PUBLISHED: dict[str, dict[str, Any]] = {
    "unet": {  # the widths are the class's own, and the blocks of the way up are not
        "cross_attention_dim": 1024,
        "sample_size": _SIDE // 8,
        "up_block_types": ("UpBlock3D", *("CrossAttnUpBlock3D",) * 3),
    },
    "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": _SIDE},
    "text": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "vision": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16},
}
"""Configurations of I2VGen-XL's networks as they were published; the encoders are OpenCLIP's ViT-H."""

WAN: dict[str, dict[str, dict[str, Any]]] = {
    "wan-ti2v-5b": {
        "transformer": {
            "num_attention_heads": 24,
            "in_channels": 48,
            "out_channels": 48,
            "ffn_dim": 14336,
            "num_layers": 30,
        },
        "vae": {
            "base_dim": 160,
            "decoder_base_dim": 256,
            "z_dim": 48,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "is_residual": True,
            "scale_factor_spatial": 16,
            "latents_mean": [0.0] * 48,
            "latents_std": [1.0] * 48,
        },
        "request": {"num_frames": 121, "height": 704, "width": 1280, "num_inference_steps": 50, "fps": 24},
    },
    "wan-a14b": {  # one of its experts, whose passes are those of the other
        "transformer": {"in_channels": 36, "out_channels": 16},
        "vae": {},
        "request": {"num_frames": 81, "height": 480, "width": 832, "num_inference_steps": 40, "fps": 16},
    },
}
"""Requests, and configurations of Wan 2.2's networks as published, where they are not their classes' own."""


def open_preset(preset: str, model: str | None) -> tuple[ImageAnimationPipeline, str]:
    """Return the pipeline of a preset's model, on the accelerator where there is one, and its name.

    Args:
        model: folder or hub id; None: the shipped teacher ("tiny") or random weights (all others).

    Raises:
        ModelError: the checkpoint is missing or cannot be loaded.
    """
    from ..serve.sources import open_checkpoint

    if preset == "i2vgen-xl" and model is None:
        return random_i2vgen_xl(device=default_device()), "random weights of I2VGen-XL's size"
    if preset in WAN and model is None:
        return random_wan(WAN[preset], device=default_device()), f"random weights of the size of {preset}"
    animator = open_checkpoint(model)
    if preset in WAN:
        animator.pipe.register_to_config(**WAN[preset]["request"])
    if preset == "i2vgen-xl":
        scales = {"guidance_scale": 9.0, "image_guidance_scale": 1.5 if animator.pipe.family.drops_picture else None}
        animator.pipe.register_to_config(
            num_frames=_FRAMES, height=_SIDE, width=_SIDE, num_inference_steps=32, **scales
        )
    return animator.pipe, animator.name


def clip_tokenizer() -> CLIPTokenizer:
    """Return CLIP's tokenizer without a learned vocabulary: each byte is a token."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters = list(bytes_to_unicode().values())
    tokens = [*characters, *(f"{one}</w>" for one in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: k for k, token in enumerate(tokens)}, merges=[], model_max_length=77)


def clip_pictures(size: int) -> CLIPImageProcessor:
    """Return CLIP's normalisation, for square pictures of `size` pixels."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def zero_snr_schedule() -> DDIMScheduler:
    """Return a cosine schedule with zero terminal SNR, so that sampling starts from pure noise (Lin et al. 2024,
    "Common Diffusion Noise Schedules and Sample Steps are Flawed").

    1024 training steps make the grids of 32 and of 8 steps exact.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1024,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def random_i2vgen_xl(
    sizes: dict[str, dict[str, Any]] = PUBLISHED, frames: int = _FRAMES, device: str = "cpu"
) -> ImageAnimationPipeline:
    """Return an I2VGen-XL pipeline with random weights: its speed and memory are those of the published one.

    Args:
        sizes: configurations as in `PUBLISHED`.
        device: where the weights are drawn and stay; a GPU draws three billion numbers in a blink. Other
            devices draw other numbers.
    """
    import torch
    from diffusers import AutoencoderKL, I2VGenXLUNet
    from diffusers.models.resnet import TemporalConvLayer
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    from ..model.animation import ImageAnimationPipeline

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=77, **ids, **sizes["text"])
    context, levels = sizes["unet"]["cross_attention_dim"], len(sizes["vae"]["block_out_channels"])
    vision = CLIPVisionConfig(image_size=224, patch_size=14, projection_dim=context, **sizes["vision"])
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    with torch.device(device):
        parts = {
            "unet": I2VGenXLUNet(**sizes["unet"]),
            "vae": AutoencoderKL(scaling_factor=0.18215, **kinds, **sizes["vae"]),
            "text_encoder": CLIPTextModel(text),
            "image_encoder": CLIPVisionModelWithProjection(vision),
        }
    for layer in parts["unet"].modules():
        if isinstance(layer, TemporalConvLayer):
            # They begin at zero: what goes wrong before them would not show.
            torch.nn.init.normal_(layer.conv4[-1].weight, std=0.02)
    pipe = ImageAnimationPipeline(
        **{name: part.eval() for name, part in parts.items()},
        tokenizer=tokenizer,
        scheduler=zero_snr_schedule(),
        feature_extractor=clip_pictures(224),
        num_frames=frames,
        num_inference_steps=32,
        guidance_scale=9.0,
        image_guidance_scale=1.5,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_wan(sizes: dict[str, dict[str, Any]], device: str = "cpu") -> ImageAnimationPipeline:
    """Return a Wan pipeline with random weights: its speed and memory are those of the published one, but for the text.

    The text encoder has two layers of the published width, since a request encodes its prompt once.

    Args:
        sizes: configurations as in `WAN`, and `text` for a text encoder of another width.
        device: as of `random_i2vgen_xl`.
    """
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
    from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

    from ..model.animation import ImageAnimationPipeline

    torch.manual_seed(0)
    letters = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((chr(code), -2.0) for code in (0x2581, *range(97, 123))),
    ]
    text = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 2, **sizes.get("text", {})}
    config = UMT5Config(vocab_size=len(letters), decoder_start_token_id=0, **text)
    with torch.device(device):
        parts = {
            "transformer": WanTransformer3DModel(**{"text_dim": config.d_model, **sizes["transformer"]}),
            "vae": AutoencoderKLWan(**sizes["vae"]),
            "text_encoder": UMT5EncoderModel(config),
        }
    pipe = ImageAnimationPipeline(
        **{name: part.eval() for name, part in parts.items()},
        tokenizer=T5Tokenizer(vocab=letters, extra_ids=0, model_max_length=512),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        expand_timesteps=parts["vae"].config.z_dim == parts["transformer"].config.in_channels,
        guidance_scale=5.0,
        **sizes["request"],
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
