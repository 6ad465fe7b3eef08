"""Small random checkpoints of each family, as diffusers' own classes hold them; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from transformers import T5Tokenizer

WORDS = ("a", "red", "circle", "moves", "up", "down", "right", "left", "blue", "star", "grows", "clip", "picture")


def t5_tokenizer(length: int) -> T5Tokenizer:
    """Return a tokenizer that knows a few words and every letter, of the kind that Wan and LTX use."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*(f"▁{word}" for word in WORDS), *letters, "▁"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -1.0 - len(piece) / 100) for piece in pieces)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=length)


def t5_config(kind: type[Any], length: int, width: int = 32) -> Any:
    return kind(
        vocab_size=len(t5_tokenizer(length)),
        d_model=width,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        decoder_start_token_id=0,
    )


def clip_image_parts(*, projected: bool = False, side: int = 32, patch: int = 8) -> tuple[Any, Any]:
    """Return a CLIP image encoder and its processor."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=side,
        intermediate_size=37,
        patch_size=patch,
    )
    kind = CLIPVisionModelWithProjection if projected else CLIPVisionModel
    return kind(config), CLIPImageProcessor(crop_size=32, size=32)


def _ready(kind: type[DiffusionPipeline], **parts: Any) -> DiffusionPipeline:
    """Return a pipeline without dropout, as `from_pretrained` does."""
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _wan(**kind: Any) -> DiffusionPipeline:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    held, experts, clip = kind.get("held", False), kind.get("experts", False), kind.get("clip", False)
    torch.manual_seed(0)
    if held:
        vae = AutoencoderKLWan(
            base_dim=3, z_dim=48, in_channels=12, out_channels=12, is_residual=True, patch_size=2,
            latents_mean=[0.1] * 48, latents_std=[1.5] * 48, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
            scale_factor_spatial=16, scale_factor_temporal=4, temperal_downsample=[False, True, True],
        )  # fmt: skip
    else:
        vae = AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
    width = 32 if clip else None

    def transformer() -> Any:
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=48 if held else 36,
            out_channels=48 if held else 16,
            text_dim=32,
            freq_dim=256,
            ffn_dim=32,
            num_layers=2,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
            image_dim=width,
            pos_embed_seq_len=17 * 2 if kind.get("last") else None,
        )

    encoder, processor = clip_image_parts() if clip else (None, None)
    return _ready(
        WanImageToVideoPipeline,
        tokenizer=t5_tokenizer(512),
        text_encoder=UMT5EncoderModel(t5_config(UMT5Config, 512)),
        vae=vae,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
        transformer=transformer(),
        transformer_2=transformer() if experts else None,
        image_encoder=encoder,
        image_processor=processor,
        boundary_ratio=0.9 if experts else None,
        expand_timesteps=held,
    )


def _svd() -> DiffusionPipeline:
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )

    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=32,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32,
        num_attention_heads=8,
        projection_class_embeddings_input_dim=96,
        addition_time_embed_dim=32,
        num_frames=6,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", interpolation_type="linear",
        num_train_timesteps=1000, prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002,
        steps_offset=1, timestep_spacing="leading", timestep_type="continuous", use_karras_sigmas=True,
    )  # fmt: skip
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4
    )
    encoder, processor = clip_image_parts(projected=True, side=224, patch=32)
    return _ready(
        StableVideoDiffusionPipeline,
        vae=vae,
        image_encoder=encoder,
        unet=unet,
        scheduler=scheduler,
        feature_extractor=processor,
    )


def _ltx(*, timestep: bool = False) -> DiffusionPipeline:
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXImageToVideoPipeline,
        LTXVideoTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=1, caption_channels=32,
    )  # fmt: skip
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
        timestep_conditioning=timestep, patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096,
        shift_terminal=0.1,
    )  # fmt: skip
    return _ready(
        LTXImageToVideoPipeline,
        scheduler=scheduler,
        vae=vae,
        text_encoder=T5EncoderModel(t5_config(T5Config, 128)),
        tokenizer=t5_tokenizer(128),
        transformer=transformer,
    )


def _cogvideox(*, version: str = "1.0", learned: bool = False) -> DiffusionPipeline:
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXDPMScheduler,
        CogVideoXImageToVideoPipeline,
        CogVideoXTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    newer = version == "1.5"
    later: dict[str, Any] = {"patch_size_t": 2, "ofs_embed_dim": 4, "patch_bias": False} if newer else {}
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=8, out_channels=4, time_embed_dim=4,
        text_embed_dim=32, num_layers=2, sample_width=16 if newer else 8, sample_height=16 if newer else 4,
        sample_frames=9, patch_size=2, use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=learned, **later,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4, scaling_factor=0.7, invert_scale_latents=newer,
    )  # fmt: skip
    scheduler = (CogVideoXDPMScheduler if newer else CogVideoXDDIMScheduler)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, snr_shift_scale=1.0 if newer else 3.0, timestep_spacing="trailing",
        clip_sample=False, set_alpha_to_one=True,
    )  # fmt: skip
    return _ready(
        CogVideoXImageToVideoPipeline,
        tokenizer=t5_tokenizer(226),
        text_encoder=T5EncoderModel(t5_config(T5Config, 226)),
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    )


_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _qwen_tokenizer() -> Any:
    """Return a tokenizer that knows the bytes of a chat and few words."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {piece: number for number, piece in enumerate([*marks, *sorted(ByteLevel.alphabet())])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], model_max_length=2048)
    tokenizer.add_special_tokens({"additional_special_tokens": marks[1:]})
    tokenizer.chat_template = _CHAT
    return tokenizer


def _hunyuanvideo15(*, meanflow: bool = False) -> DiffusionPipeline:
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15ImageToVideoPipeline,
        HunyuanVideo15Transformer3DModel,
    )
    from diffusers.guiders import ClassifierFreeGuidance
    from transformers import (
        ByT5Tokenizer,
        SiglipImageProcessor,
        SiglipVisionConfig,
        SiglipVisionModel,
        T5Config,
        T5EncoderModel,
    )
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

    torch.manual_seed(0)
    qwen = Qwen2_5_VLTextConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    siglip = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    byt5 = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=384)
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=16, image_embed_dim=16,
        rope_axes_dim=(4, 6, 6), target_size=45, use_meanflow=meanflow,
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1, spatial_compression_ratio=16,
        temporal_compression_ratio=4, downsample_match_channel=False, upsample_match_channel=False,
    )  # fmt: skip
    return _ready(
        HunyuanVideo15ImageToVideoPipeline,
        text_encoder=Qwen2_5_VLTextModel(qwen),
        tokenizer=_qwen_tokenizer(),
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=T5EncoderModel(byt5),
        tokenizer_2=ByT5Tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
        image_encoder=SiglipVisionModel(siglip),
        feature_extractor=SiglipImageProcessor(size={"height": 28, "width": 28}),
    )


SMALL: dict[str, Callable[[], DiffusionPipeline]] = {
    "wan-2.1": lambda: _wan(clip=True),
    "wan-2.1-flf": lambda: _wan(clip=True, last=True),
    "wan-2.2-a14b": lambda: _wan(experts=True),
    "wan-2.2-ti2v": lambda: _wan(held=True),
    "svd": _svd,
    "ltx": _ltx,
    "cogvideox": _cogvideox,
    "cogvideox-learned": lambda: _cogvideox(learned=True),
    "cogvideox-1.5": lambda: _cogvideox(version="1.5"),
    "hunyuanvideo-1.5": _hunyuanvideo15,
    "hunyuanvideo-1.5-meanflow": lambda: _hunyuanvideo15(meanflow=True),
    "ltx-timestep": lambda: _ltx(timestep=True),
}
"""A random checkpoint by the name of its kind."""
