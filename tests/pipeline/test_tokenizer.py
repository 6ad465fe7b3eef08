from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from pipeline.clips import COLOURS, MOTIONS, SHAPES, ClipGenerator, caption_of
from pipeline.train.text import build_tokenizer, words_of_captions

LENGTH = 20


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(LENGTH)


def ids_of(tokenizer, text):
    return tokenizer(text, padding="max_length", max_length=LENGTH, truncation=True).input_ids


@given(st.text(max_size=200))
def test_any_text_becomes_as_many_tokens_as_the_model_takes(tokenizer, text):
    ids = ids_of(tokenizer, text)
    assert len(ids) == LENGTH
    assert all(0 <= token < len(tokenizer) for token in ids)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id in ids


@given(st.lists(st.sampled_from(words_of_captions()), min_size=1, max_size=LENGTH - 2))
def test_known_words_come_back(tokenizer, words):
    assert tokenizer.decode(tokenizer(" ".join(words)).input_ids, skip_special_tokens=True).split() == words


def test_every_known_word_is_one_token(tokenizer):
    assert [word for word in words_of_captions() if len(tokenizer(word).input_ids) != 3] == []


@given(st.text(st.characters(min_codepoint=ord("a"), max_codepoint=ord("z")), min_size=1, max_size=LENGTH - 2))
def test_a_word_of_letters_comes_back_whether_known_or_not(tokenizer, word):
    assert tokenizer.decode(tokenizer(word).input_ids, skip_special_tokens=True).strip() == word


@pytest.mark.parametrize("text", ["猫が走る", "Füße", "a 🙂 jumps", "naïve café", "привет"])
def test_other_scripts_are_spelled_out_without_an_unknown_token(tokenizer, text):
    ids = tokenizer(text, truncation=False).input_ids[1:-1]
    assert ids
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.eos_token_id not in ids


def test_different_captions_become_different_tokens(tokenizer):
    captions = set(ClipGenerator(16, 2, seed=0, variety=True).batch(100).captions)
    assert len({tuple(ids_of(tokenizer, caption)) for caption in captions}) == len(captions)


def test_every_plain_caption_fits(tokenizer):
    for combination in product(COLOURS, SHAPES, MOTIONS):
        assert len(tokenizer(caption_of(*combination)).input_ids) <= LENGTH


def test_capitals_and_spaces_make_no_difference(tokenizer):
    assert ids_of(tokenizer, "  A Red   CIRCLE moves right ") == ids_of(tokenizer, "a red circle moves right")


def test_what_is_saved_loads_to_the_same_tokens(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == LENGTH
    assert len(loaded) == len(tokenizer)
    for text in ["", "a red circle moves right", "猫 jumps", "the zebra’s <b>hat</b>", "<|endoftext|> a ring"]:
        assert ids_of(loaded, text) == ids_of(tokenizer, text)


def test_the_empty_text_has_tokens_of_its_own(tokenizer):
    assert set(ids_of(tokenizer, "")) == {tokenizer.bos_token_id, tokenizer.eos_token_id}
