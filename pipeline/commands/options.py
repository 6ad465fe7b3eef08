"""What several commands share: kinds of arguments, and how a model is named and opened."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields, replace
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from ..console import tell
from ..errors import StillmotionError
from ..runs.settings import parse_value


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add `--model`."""
    text = "a tag of the store, a folder, or a hub id (default: the newest in the store, else the shipped teacher)"
    parser.add_argument("--model", metavar="TAG_OR_FOLDER_OR_ID", help=text)


def open_model(tag_or_folder: str | None, **defaults: Any) -> Any:
    """Open what `--model` names, and say which one it is.

    Args:
        defaults: of a call to a checkpoint that is not packaged; None is its own.
    """
    from ..quiet import quiet_libraries

    quiet_libraries()
    from ..serve import sources

    try:
        animator = sources.open_model(tag_or_folder, **defaults)
    except ValueError as error:
        raise StillmotionError(str(error)) from error
    tell(f"model {animator.name}")
    if animator.fallback is not None:
        tell(animator.fallback)
    return animator


def existing(path: Path) -> Path:
    """Return the path of a file that is there."""
    if not path.is_file():
        raise StillmotionError(f"{path}: no such file")
    return path


def size(text: str) -> tuple[int, int]:
    """Height and width in pixels, from a text such as 832x480."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a width and a height such as 832x480")
    return int(found[2]), int(found[1])


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def utf8_text(text: str) -> str:
    """Words that are text: the system hands on bytes that are not UTF-8 as they came."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("is not UTF-8 text") from error
    return text


def add_parameters(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `-p NAME VALUE`, which may be repeated."""
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters", help=text
    )


def settings_with_parameters(options: argparse.Namespace, settings: Any, of: str | None) -> Any:
    """Return a dataclass of settings with those of the `-p` values that it has.

    Args:
        settings: with its defaults.
        of: what the settings are of: a name that they do not have is wrong use. None: other settings
            may have it.
    """
    hints = get_type_hints(type(settings))
    given, known = dict(options.parameters), {field.name for field in fields(settings)}
    if of and (unknown := sorted(given.keys() - known)):
        options.usage_error(f"-p {unknown[0]}: not a setting of {of}; they are {', '.join(sorted(known))}")
    chosen = {}
    for name in sorted(given.keys() & known):
        text, hint = given[name], hints[name]
        try:
            chosen[name] = parse_value(text, hint)
        except ValueError:
            kind = next((one for one in get_args(hint) if one is not NoneType and isinstance(one, type)), hint)
            if isinstance(hint, type) and issubclass(hint, StrEnum):
                options.usage_error(f"-p {name}: {text!r} is not one of {', '.join(hint)}")
            options.usage_error(f"-p {name}: {text!r} is not of type {getattr(kind, '__name__', kind)}")
    try:
        return replace(settings, **chosen)
    except ValueError as error:
        options.usage_error(f"-p {error}")
        raise
