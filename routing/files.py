"""Files that people write (YAML, JSON), read strictly, and files that programs watch, replaced at once."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from .errors import InputError, RoutingError

LARGEST = 16 * 2**20  # bytes; the table of a thousand regions has less than half of it


def read_text(path: Path) -> str:
    """Text of a file.

    Raises:
        InputError: it is missing, a folder, unreadable, too large or no UTF-8.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"has more than {LARGEST // 2**20} MiB", file=str(path))
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError("no such file", file=str(path)) from None
    except UnicodeDecodeError as error:
        raise InputError(f"is no UTF-8 text (byte {error.start})", file=str(path)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read: {reason}", file=str(path)) from None


def read_yaml(path: Path) -> object:
    """Content of a YAML file; None where it is empty.

    Raises:
        InputError: it cannot be read, is no YAML, or has a key twice or one that is no text; with the line.
    """
    text = read_text(path)
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506  # a safe loader, with less
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise InputError(line + (error.problem or error.context or "is no YAML"), file=str(path)) from None
    except yaml.reader.ReaderError as error:
        raise InputError(f"is no YAML: {error.reason} at character {error.position}", file=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"is no YAML: {' '.join(str(error).split())}", file=str(path)) from None


def read_json(path: Path) -> object:
    """Content of a JSON file.

    Raises:
        InputError: it cannot be read, is no JSON, has a key twice, or NaN or Infinity.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, name: str = "") -> object:
    """Content of JSON text; see `read_json`."""
    if not text.strip():
        raise InputError("is empty", file=name)
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise InputError(f"line {error.lineno}: is no JSON: {error.msg}", file=name) from None
    except InputError as error:
        raise error.within(name) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"is no JSON: {error}", file=name) from None


def write_atomically(path: Path, text: str) -> None:
    """Replace a file at once: who reads it gets the old text or the new, whole, even after a power cut.

    Raises:
        RoutingError: it cannot be written; the old file is as it was.
    """
    temporary = ""
    try:
        # In the same folder, since a rename is atomic within a file system only.
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", suffix=".partial", delete=False
        ) as file:
            temporary = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        Path(temporary).replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name is on disk too
        finally:
            os.close(folder)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise RoutingError(f"{path}: cannot be written ({error.strerror})") from error


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is no text, and one that is there twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[object, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if isinstance(key_node, yaml.ScalarNode) and not isinstance(key, str):
                # As it was written: YAML reads `no` as false and 1e3 as a number, and nobody would know their key.
                problem = f"the key {key_node.value or 'that is empty'} should be text; put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if isinstance(key, Hashable) and key in lines:
                problem = f"the key {key} is there twice, first in line {lines[key]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if isinstance(key, Hashable):
                lines[key] = line
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e3 for text; everyone else, YAML 1.2 too, for a number.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"the key {key} is there twice")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise InputError(f"{name} is no number")


# In C where PyYAML was built with it: a table of a hundred regions is a hundred files.
_SafeDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_SafeDumper):  # type: ignore[misc,valid-type]  # one of two
    def ignore_aliases(self, data: object) -> bool:
        return True


def yaml_text(*documents: Mapping[str, Any]) -> str:
    """Documents in the order of their keys; what occurs twice is written twice, where YAML would refer to it."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
