"""What several commands share: kinds of arguments, and how a model is named and opened."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields, replace
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from .console import tell
from .errors import StillmotionError

# 3e-4 is a number to everybody but YAML 1.1, which wants a point and a sign.
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add `--model`."""
    text = "default: the newest in the store, else the shipped teacher"
    parser.add_argument("--model", metavar="TAG_OR_FOLDER", help=text)


def open_model(tag_or_folder: str | None) -> Any:
    """Open what `--model` names, and say which one it is."""
    from .quiet import quiet_libraries

    quiet_libraries()
    from . import sources

    animator = sources.open_model(tag_or_folder)
    tell(f"model {animator.name}")
    if animator.fallback is not None:
        tell(animator.fallback)
    return animator


def existing(path: Path) -> Path:
    """The path of a file that is there.

    Raises:
        StillmotionError: it is not.
    """
    if not path.is_file():
        raise StillmotionError(f"{path}: no such file")
    return path


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def add_parameters(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `-p NAME VALUE`, which may be repeated."""
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters", help=text
    )


def parameters(options: argparse.Namespace) -> dict[str, Any]:
    """`-p` pairs; values are read as YAML, and as papermill reads its own `-p`."""
    found = {}
    for name, text in options.parameters:
        if _EXPONENT.fullmatch(text):
            found[name] = float(text)
            continue
        try:
            found[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            found[name] = text
    return found


def settings_with_parameters(options: argparse.Namespace, settings: Any, of: str | None) -> Any:
    """A dataclass of settings with those of the `-p` values that it has.

    Args:
        settings: with its defaults, which say of what type each setting is.
        of: what the settings are of: a name that they do not have is wrong use. None: other settings
            may have it.
    """
    given, texts = parameters(options), dict(options.parameters)
    known = {field.name: _kind(settings, field.name) for field in fields(settings)}
    if of and (unknown := sorted(given.keys() - known)):
        options.usage_error(f"-p {unknown[0]}: not a setting of {of}; they are {', '.join(sorted(known))}")
    chosen = {name: value for name, value in given.items() if name in known}
    for name, value in chosen.items():
        kind = known[name]
        if value is None and getattr(settings, name) is None:
            continue
        if issubclass(kind, str):
            chosen[name] = texts[name]  # "no" is text too, and not false as in YAML
            if issubclass(kind, StrEnum) and texts[name] not in list(kind):
                options.usage_error(f"-p {name}: {texts[name]!r} is not one of {', '.join(kind)}")
        elif kind is tuple and isinstance(value, list):
            chosen[name] = tuple(value)
        elif kind is float and type(value) is int:
            chosen[name] = float(value)
        elif type(value) is not kind:
            options.usage_error(f"-p {name}: {value!r} is not of type {kind.__name__}")
    return replace(settings, **chosen)


def _kind(settings: Any, name: str) -> type:
    """The class that a setting's values are of; where it is None by default, that of `X` in `X | None`."""
    value = getattr(settings, name)
    if value is not None:
        return type(value)
    hint = next(one for one in get_args(get_type_hints(type(settings))[name]) if one is not NoneType)
    kind: type = get_origin(hint) or hint
    return kind
