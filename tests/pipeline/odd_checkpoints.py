"""Odd checkpoints as people bring them: each function spoils a good folder in diffusers format in one way.

`python tests/pipeline/odd_checkpoints.py GOOD FOLDER` writes a spoilt copy of each kind.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]


def _rewritten(folder: Path, part: str, change: Callable[[Weights], Weights]) -> None:
    (path,) = (folder / part).glob("*.safetensors")
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(weights), path, {"format": "pt"})


def _prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def _without_last(weights: Weights) -> Weights:
    return {name: weights[name] for name in sorted(weights)[:-1]}


def _with_another(weights: Weights) -> Weights:
    return weights | {"other_head.weight": torch.zeros(2)}


def _reshaped(weights: Weights) -> Weights:
    name = max(weights)
    return weights | {name: torch.zeros(*weights[name].shape, 2)}


def _filled(value: float) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        weights[max(weights)].view(-1)[-1] = value
        return weights

    return change


WEIGHTS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "prefix-of-data-parallel": (_prefixed("module."), "missing (first "),
    "prefix-of-compile": (_prefixed("_orig_mod."), "missing (first "),
    "prefix-of-lightning": (_prefixed("model.net."), "missing (first "),
    "one-key-missing": (_without_last, "1 missing (first "),
    "no-keys": (lambda _: {}, "missing (first "),
    "one-key-more": (_with_another, "1 unexpected (first other_head.weight)"),
    "another-shape": (_reshaped, "1 of another shape (first "),
    "nan": (_filled(float("nan")), "holds NaN or infinity"),
    "infinity": (_filled(float("-inf")), "holds NaN or infinity"),
}
"""How the weights of a part are spoilt, and what is said of it."""


def spoil_weights(folder: Path, part: str, name: str) -> None:
    """Spoil one part's weights in place."""
    _rewritten(folder, part, WEIGHTS[name][0])


def _edited(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def _tokenizer_without_merges(folder: Path) -> None:
    _edited(folder / "tokenizer.json", lambda content: content["model"].update(merges=[]))


def _tokenizer_with_empty_vocabulary(folder: Path) -> None:
    special = ("<|startoftext|>", "<|endoftext|>")
    _edited(
        folder / "tokenizer.json",
        lambda content: content["model"].update(vocab={word: k for k, word in enumerate(special)}, merges=[]),
    )


def _tokenizer_of_another_model(folder: Path) -> None:
    def more_words(content: Any) -> None:
        known = content["model"]["vocab"]
        known.update({f"word{k}</w>": len(known) + k for k in range(50)})

    _edited(folder / "tokenizer.json", more_words)


TOKENIZERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no-vocabulary": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer: "),
    "empty-vocabulary": (_tokenizer_with_empty_vocabulary, "tokenizer: has no vocabulary"),
    "no-merges": (_tokenizer_without_merges, "tokenizer: spells every word of its own vocabulary"),
    "of-another-model": (_tokenizer_of_another_model, "tokenizer: has "),
    "no-folder": (shutil.rmtree, "tokenizer"),
}
"""How a tokenizer's folder is spoilt, and what is said of it."""


def without_length(folder: Path) -> None:
    """Take the number of tokens out of a tokenizer's settings, as some published folders lack it."""
    _edited(folder / "tokenizer" / "tokenizer_config.json", lambda content: content.pop("model_max_length"))


if __name__ == "__main__":
    good, target = map(Path, sys.argv[1:3])
    for part in ("text_encoder", "image_encoder", "unet", "vae"):
        for name in WEIGHTS:
            spoil_weights(Path(shutil.copytree(good, target / f"{part}-{name}")), part, name)
    for name, (spoil, _) in TOKENIZERS.items():
        spoil(Path(shutil.copytree(good, target / f"tokenizer-{name}")) / "tokenizer")
