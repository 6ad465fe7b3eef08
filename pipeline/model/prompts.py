"""Prompts as a text encoder reads them: how much of one is read, where it waits, whether its tokenizer is whole.

Where its vocabulary is missing, transformers builds a tokenizer without words, for which all prompts are the same.
"""

from __future__ import annotations

import html
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import ModelError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import BatchEncoding, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_PROBED_WORDS = 32
"""Words of the vocabulary that show whether the tokenizer puts words together."""


@dataclass(frozen=True)
class PromptLength:
    """Tokens of a prompt, without those that mark its beginning and end.

    Attributes:
        tokens: of the whole prompt.
        read: of these the text encoder reads the first so many.
    """

    tokens: int
    read: int

    @property
    def truncated(self) -> str | None:
        """What to tell a person whose prompt is read in part; None where all of it is read."""
        return None if self.read == self.tokens else f"the model read the first {self.read} of {self.tokens} tokens"


def prompt_limit(tokenizer: PreTrainedTokenizerBase, text_encoder: nn.Module, limit: int | None = None) -> int:
    """Return how many tokens are read, with those that mark beginning and end.

    It is the lesser of what the tokenizer says and the text encoder has positions for. A tokenizer that says nothing
    has 1e30 there.

    Args:
        limit: of a family whose network takes so many, whatever tokenizer and text encoder say. As in all functions
            here.
    """
    if limit is not None:
        return limit
    positions = getattr(text_encoder.config, "max_position_embeddings", None)
    said = tokenizer.model_max_length
    return int(said if positions is None else min(said, positions))


def measure(
    tokenizer: PreTrainedTokenizerBase, text_encoder: nn.Module, prompt: str, limit: int | None = None
) -> PromptLength:
    """Return how long a prompt is, and how much of it is read."""
    tokens = len(tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)
    marks = tokenizer.num_special_tokens_to_add()
    return PromptLength(tokens, min(tokens, prompt_limit(tokenizer, text_encoder, limit) - marks))


def tokenize(
    tokenizer: PreTrainedTokenizerBase, text_encoder: nn.Module, prompts: Sequence[str], limit: int | None = None
) -> BatchEncoding:
    """Return prompts as token numbers `(batch, tokens)`, padded and cut to what is read; a cut is logged."""
    warn_of_cut(tokenizer, text_encoder, prompts, limit)
    limit = prompt_limit(tokenizer, text_encoder, limit)
    return tokenizer(list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt")


def warn_of_cut(
    tokenizer: PreTrainedTokenizerBase, text_encoder: nn.Module, prompts: Sequence[str], limit: int | None = None
) -> None:
    """Log a warning for each prompt of which the text encoder reads a part alone."""
    for prompt in prompts:
        if said := measure(tokenizer, text_encoder, prompt, limit).truncated:
            logger.warning("prompt %.40r...: too long, %s", prompt, said)


def clean(prompt: str) -> str:
    """Return a prompt as the text encoders of Wan and LTX were trained to read it: mended encoding, single spaces."""
    import ftfy  # of the families that clean alone

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, text_encoder: nn.Module, folder: Path | None = None, limit: int | None = None
) -> None:
    """Refuse a tokenizer that knows no words, or more of them than the text encoder.

    Args:
        folder: where it was loaded from, for files that it should have.

    Raises:
        ModelError: its files or its vocabulary are missing, or it does not fit the text encoder.
    """
    if folder is not None:
        _check_tokenizer_files(tokenizer, folder)
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if not words:
        raise ModelError("tokenizer: has no vocabulary, so that every prompt would be the same; add its files")
    known = int(getattr(text_encoder.config, "vocab_size", 0))
    if known and len(tokenizer) > known:
        raise ModelError(f"tokenizer: has {len(tokenizer)} tokens, and text_encoder knows {known}; they do not fit")
    # Longest first; a byte-pair tokenizer without its merges knows these words and spells them all the same.
    whole = sorted((w for w in words if w.endswith("</w>") and w[:-4].isascii() and w[:-4].isalpha()), key=len)
    longest = [word[:-4] for word in whole[-_PROBED_WORDS:] if len(word) > len("a</w>")]
    if longest and all(len(tokenizer.tokenize(word)) > 1 for word in longest):
        raise ModelError("tokenizer: spells every word of its own vocabulary; its merges are missing")
    try:
        tokenize(tokenizer, text_encoder, ["a"], limit=limit)
    except Exception as error:  # of transformers, whose kinds are many
        raise ModelError(f"tokenizer: cannot read a prompt: {first_line(error)}") from error


def _check_tokenizer_files(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError(f"tokenizer: {folder} is missing; copy it from the checkpoint's source")
    names = dict(tokenizer.vocab_files_names)
    whole = names.pop("tokenizer_file", None)
    if whole is not None and (folder / whole).is_file():
        return
    missing = [name for name in names.values() if not (folder / name).is_file()]
    if missing and len(names) > 0:
        instead = f", and {whole} too" if whole else ""
        raise ModelError(f"tokenizer: {missing[0]} is missing{instead}; copy it from the checkpoint's source")


Placement = Literal["resident", "offload"]


@dataclass
class TextEncoding:
    """How prompts are encoded.

    Attributes:
        placement: "resident" keeps the text encoder where the network is; "offload" moves it there for a prompt, and
            back to the processor's memory after it: a text encoder of several gigabytes leaves room for the network,
            and each new prompt waits for two moves.
        remembered: prompts whose encoding is kept, in the processor's memory; the one that was not used for longest
            goes first. 0: none.
    """

    placement: Placement = "resident"
    remembered: int = 0
    _kept: OrderedDict[Hashable, Mapping[str, Tensor]] = field(default_factory=OrderedDict, repr=False)

    def encode(
        self, key: Hashable, text_encoder: nn.Module, device: torch.device, compute: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Return what `compute` returns, or returned for the same key before.

        Args:
            key: all that the encoding depends on.
            text_encoder: that `compute` calls, on `device`.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if self.placement == "offload":
            text_encoder.to(device)
        try:
            made = compute()
        finally:
            if self.placement == "offload":
                text_encoder.to("cpu")
        if self.remembered:
            self._kept[key] = {name: tensor.cpu() for name, tensor in made.items()}
            while len(self._kept) > self.remembered:
                self._kept.popitem(last=False)
        return made
