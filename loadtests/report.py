"""A page about a run."""
from typing import Any
def page(result: dict[str, Any]) -> str:
    return "<html></html>"
