"""The embedded teacher before it is trained: a small diffusion transformer in Wan's own classes.

The picture is given as Wan gives it: as the first latent frame (`held`, as TI2V-5B), or beside the noise with a mask
(as A14B).
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from torch import nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from ..clips.phrases import words
from ..model.animation import ImageAnimationPipeline
from .settings import TeacherSettings


def build_tokenizer() -> T5Tokenizer:
    """Return a tokenizer that has a token for each word of captions and spells out all other text."""
    characters = [chr(code) for code in range(33, 127)]
    pieces = [*(f"▁{word}" for word in words()), *characters, "▁"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(piece, -1.0 if len(piece) > 1 else -8.0) for piece in dict.fromkeys(pieces)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def build_pipeline(settings: TeacherSettings, vae: AutoencoderKLWan) -> ImageAnimationPipeline:
    """Return an untrained teacher around a trained autoencoder."""
    s, tokenizer, latents = settings, build_tokenizer(), vae.config.z_dim
    heads = s.width // 32
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=s.text_width, d_kv=16, d_ff=2 * s.text_width, num_layers=2,
            num_heads=max(1, s.text_width // 16), dropout_rate=0.0, decoder_start_token_id=0,
        )
    )  # fmt: skip
    transformer = WanTransformer3DModel(
        patch_size=(1, 1, 1),  # latent cells are 8 pixels, and few
        num_attention_heads=heads,
        attention_head_dim=32,
        in_channels=latents if s.held else 2 * latents + vae.config.scale_factor_temporal,
        out_channels=latents,
        text_dim=s.text_width,
        freq_dim=128,
        ffn_dim=3 * s.width,
        num_layers=s.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )
    start_near(transformer)
    pipe = ImageAnimationPipeline(
        tokenizer=tokenizer,
        text_encoder=text,
        vae=vae.requires_grad_(requires_grad=False).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=s.shift),
        transformer=transformer,
        expand_timesteps=s.held,
        num_inference_steps=s.teacher_steps,
        guidance_scale=s.guidance_scale,
        num_frames=s.frames,
        height=s.size,
        width=s.size,
        fps=s.fps,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def start_near(transformer: WanTransformer3DModel) -> None:
    """Set weights such that an untrained network passes its input on, looks at the same place in others, and reads.

    Noise has to reach the output, since the flow is noise less clip, and a background has to come from the frame that
    is given: a network that starts at random takes thousands of steps to find both.
    """
    embedding, out = transformer.patch_embedding, transformer.proj_out
    width, channels = embedding.weight.shape[:2]
    nn.init.orthogonal_(embedding.weight.view(width, -1))
    nn.init.zeros_(embedding.bias)
    # The output lists channels last.
    back = embedding.weight.view(width, channels, -1).transpose(1, 2).reshape(width, -1, channels)
    out.weight.copy_(back[:, :, : transformer.config.out_channels].reshape(width, -1).T)
    nn.init.zeros_(out.bias)
    head, heads = transformer.config.attention_head_dim, transformer.config.num_attention_heads
    third = 2 * (head // 6)  # rotary frequencies: of time, then of height, then of width
    axes = (head - 2 * third, head - third)
    tuned = [start + 2 * k for start in axes for k in range(2)]  # the two highest frequencies of each axis
    for block in transformer.blocks:
        for project, norm in ((block.attn1.to_q, block.attn1.norm_q), (block.attn1.to_k, block.attn1.norm_k)):
            for k in range(heads // 2):
                project.weight[k * head : (k + 1) * head] *= 0.1
                project.bias[k * head : (k + 1) * head] = 0
                for dim in tuned:
                    project.bias[k * head + dim] = 1
                    norm.weight[k * head + dim] = 3
    # A caption of ten words stands beside 500 tokens of padding, all zeros, which would have 98 % of the attention.
    # Their key is the bias alone, and is turned against what all queries have in common.
    text = transformer.condition_embedder.text_embedder
    nn.init.zeros_(text.linear_1.bias)
    nn.init.zeros_(text.linear_2.bias)
    text.linear_2.weight *= 5  # else what is read is a twentieth of what is seen
    for block in transformer.blocks:
        nn.init.ones_(block.attn2.to_q.bias)
        nn.init.constant_(block.attn2.to_k.bias, -0.01)
        nn.init.constant_(block.attn2.norm_q.weight, 1.5)
        nn.init.constant_(block.attn2.norm_k.weight, 1.5)
