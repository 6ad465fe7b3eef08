"""A CLIP tokenizer and small CLIP encoders, built without any download."""

from __future__ import annotations

from itertools import pairwise

from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..clips.vocabulary import COLOURS, GENERIC_SHAPES, MOTIONS, SHAPES

_START, _END = "<|startoftext|>", "<|endoftext|>"


def words_of_captions() -> list[str]:
    """Return every word that a generated caption can hold."""
    words = {"a", "an", "the", "and"}
    for text in (*COLOURS, *SHAPES, *MOTIONS, *GENERIC_SHAPES):
        words.update(text.split())
    return sorted(words)


def _merged(parts: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Apply merges to a word as byte-pair encoding does: always the earliest one that fits."""
    rank = {pair: k for k, pair in enumerate(merges)}
    while True:
        pairs = [(rank[pair], k) for k, pair in enumerate(pairwise(parts)) if pair in rank]
        if not pairs:
            return parts
        _, k = min(pairs)
        parts = [*parts[:k], parts[k] + parts[k + 1], *parts[k + 2 :]]


def build_tokenizer(max_length: int = 20) -> CLIPTokenizer:
    """Return a byte-level BPE that has one token for each caption word and spells out all other text."""
    vocabulary: list[str] = []
    for character in bytes_to_unicode().values():
        vocabulary += [character, character + "</w>"]
    merges: list[tuple[str, str]] = []
    for word in words_of_captions():
        # Merges of earlier words come first in this one too ("an" in "orange"), so they are applied
        # before what is left is joined by new ones.
        parts = _merged([*word[:-1], word[-1] + "</w>"], merges)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            vocabulary.append(parts[0] + parts[1])
            parts = _merged(parts, merges)
    ids = {token: k for k, token in enumerate(dict.fromkeys([*vocabulary, _START, _END]))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=max_length)


def build_text_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModel:
    """Return a CLIP text transformer of one layer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=1,
            num_attention_heads=max(1, width // 16),
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_image_encoder(size: int, width: int) -> CLIPVisionModelWithProjection:
    """Return a CLIP vision transformer of one layer over 16-pixel patches."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=size,
            patch_size=16,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=max(1, width // 16),
            projection_dim=width,
        )
    )


def build_feature_extractor(size: int) -> CLIPImageProcessor:
    """CLIP's normalisation, for square pictures of `size` pixels."""
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
