"""Models that `pipeline bench` measures: the shipped teacher, or a U-Net of published size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline


@dataclass(frozen=True)
class Size:
    """Widths of an I2VGen-XL model; the defaults are those of the published one.

    Attributes:
        unet, vae: channels of each level.
        context: width of text and picture tokens.
        text_layers, vision_layers: of the two encoders (OpenCLIP ViT-H).
        vision: width of the vision encoder.
        frames, side: of a clip, the side in pixels.
    """

    unet: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    head_dim: int = 64
    groups: int = 32
    vae: tuple[int, ...] = (128, 256, 512, 512)
    context: int = 1024
    text_layers: int = 24
    vision_layers: int = 32
    vision: int = 1280
    frames: int = 16
    side: int = 512


def open_preset(preset: str, model: str | None) -> tuple[ImageAnimationPipeline, str]:
    """Pipeline and name of a preset's model, on the accelerator where there is one.

    Args:
        model: folder or hub id; None: the shipped teacher ("tiny") or random weights ("i2vgen-xl").

    Raises:
        ModelError: the checkpoint is missing or cannot be loaded.
    """
    import torch

    from ..serve.sources import name_of, open_checkpoint

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if preset == "tiny" or model is not None:
        animator = open_checkpoint(model, device)
        pipe, name = animator.pipe, animator.name
    else:
        pipe, name = random_i2vgen_xl(Size(), device=device), "random weights of I2VGen-XL's size"
    if preset == "i2vgen-xl":
        size = Size()
        factor = pipe.family.size_step(pipe.parts)
        pipe.unet.register_to_config(sample_size=(size.side // factor, size.side // factor))
        pipe.register_to_config(
            num_frames=size.frames, num_inference_steps=32, guidance_scale=9.0, image_guidance_scale=1.5
        )
        name = f"{name_of(model)}" if model else name
    return pipe.to(device), name


def random_i2vgen_xl(size: Size, seed: int = 0, device: str = "cpu") -> ImageAnimationPipeline:
    """An I2VGen-XL pipeline with random weights: its speed and memory are those of the published one.

    Args:
        device: where the weights are drawn and stay; a GPU draws three billion numbers in a blink. Other
            devices draw other numbers for the same seed.
    """
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLUNet
    from diffusers.models.resnet import TemporalConvLayer
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    from ..model.animation import ImageAnimationPipeline
    from ..train.text import build_feature_extractor, build_tokenizer

    torch.manual_seed(seed)
    tokenizer = build_tokenizer(max_length=77)
    levels = len(size.unet)
    cross = ("CrossAttnDownBlock3D",) * (levels - 1), ("CrossAttnUpBlock3D",) * (levels - 1)
    with torch.device(device):
        unet = I2VGenXLUNet(
            sample_size=size.side // 2 ** (len(size.vae) - 1),
            down_block_types=(*cross[0], "DownBlock3D"),
            up_block_types=("UpBlock3D", *cross[1]),
            block_out_channels=size.unet,
            layers_per_block=size.layers,
            norm_num_groups=size.groups,
            cross_attention_dim=size.context,
            attention_head_dim=size.head_dim,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(size.vae),
            up_block_types=("UpDecoderBlock2D",) * len(size.vae),
            block_out_channels=size.vae,
            layers_per_block=2,
            norm_num_groups=size.groups,
            latent_channels=4,
            sample_size=size.side,
            scaling_factor=0.18215,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=size.context,
                intermediate_size=4 * size.context,
                num_hidden_layers=size.text_layers,
                num_attention_heads=max(1, size.context // 64),
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                image_size=224,
                patch_size=14,
                hidden_size=size.vision,
                intermediate_size=4 * size.vision,
                num_hidden_layers=size.vision_layers,
                num_attention_heads=max(1, size.vision // 80),
                projection_dim=size.context,
            )
        )
    for layer in unet.modules():
        if isinstance(layer, TemporalConvLayer):
            # They begin at zero: what goes wrong before them would not show.
            torch.nn.init.normal_(layer.conv4[-1].weight, std=0.02)
    pipe = ImageAnimationPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            clip_sample=False,
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
        image_encoder=vision.eval(),
        feature_extractor=build_feature_extractor(224),
        num_frames=size.frames,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
