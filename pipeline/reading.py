"""Files of settings: YAML, checked by a pydantic model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from .errors import StillmotionError

M = TypeVar("M", bound=BaseModel)


def read_yaml(path: Path, kind: type[M], prepare: Callable[[Any], Any] = lambda content: content) -> M:
    """Read a file.

    Args:
        prepare: called with its content before it is checked.

    Raises:
        FileNotFoundError: it is not there.
        StillmotionError: a key or a value is wrong, or it cannot be read; the text names the key and what it is.
    """
    try:
        return kind.model_validate(prepare(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part != "[key]") or "(top)"
        given = "" if isinstance(first["input"], (dict, list)) else f" (is {first['input']!r})"
        raise StillmotionError(f"{path}: {key}: {first['msg']}{given}") from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise StillmotionError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
