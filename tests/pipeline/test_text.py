"""A text encoder may wait elsewhere, and what it made of a prompt is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.model.prompts import TextEncoding


@pytest.fixture
def readings(i2vgen, monkeypatch):
    """Prompts that the text encoder has read, and the pipeline with a way of encoding of its own."""
    seen = []
    encode = type(i2vgen.family).encode_text

    def counted(family, parts, texts, clip_skip=None):
        seen.append(tuple(texts))
        return encode(family, parts, texts, clip_skip)

    monkeypatch.setattr(type(i2vgen.family), "encode_text", counted)
    monkeypatch.setattr(i2vgen, "text_encoding", TextEncoding(remembered=2))
    return seen


def frames(pipe, picture, prompt):
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    options = {"num_frames": 2, "num_inference_steps": 1, "guidance_scale": 1.0, "image_guidance_scale": None}
    return np.asarray(pipe(picture(), prompt, generator=generator, output_type="np", **options).frames)


def test_a_prompt_is_read_once_and_gives_the_same_clip(i2vgen, picture, readings):
    first = frames(i2vgen, picture, "a ball")
    assert np.array_equal(frames(i2vgen, picture, "a ball"), first)
    assert readings == [("a ball",)]
    assert not np.array_equal(frames(i2vgen, picture, "a star"), first)


def test_the_prompt_that_was_not_used_for_longest_is_forgotten_first(i2vgen, picture, readings):
    for prompt in ("one", "two", "one", "three", "one", "two"):
        frames(i2vgen, picture, prompt)
    assert readings == [("one",), ("two",), ("three",), ("two",)]


@pytest.mark.usefixtures("readings")
def test_an_offloaded_text_encoder_comes_for_a_prompt_and_goes_again(i2vgen, picture, monkeypatch):
    expected = frames(i2vgen, picture, "a ball")
    moves = []
    move = i2vgen.text_encoder.to
    monkeypatch.setattr(i2vgen.text_encoder, "to", lambda place: moves.append(str(place)) or move(place))
    monkeypatch.setattr(i2vgen, "text_encoding", TextEncoding("offload", remembered=1))
    for _ in range(2):
        assert np.array_equal(frames(i2vgen, picture, "a ball"), expected)
    assert moves == ["cpu", "cpu"]  # to where the network computes, and back: once, since the prompt is kept
