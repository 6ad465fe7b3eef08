"""YAML for people and for programs that read the same file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

# In C where PyYAML was built with it: a table of a hundred regions is a hundred files.
_SafeDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_SafeDumper):  # type: ignore[misc,valid-type]  # one of two
    def ignore_aliases(self, data: object) -> bool:
        return True


def yaml_text(*documents: Mapping[str, Any]) -> str:
    """Documents in the order of their keys; what occurs twice is written twice, where YAML would refer to it."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
