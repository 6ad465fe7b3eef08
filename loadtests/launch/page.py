"""The verdict as one HTML page, without anything from elsewhere; reports of the load tests are linked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from routing.page import rendered


def page(document: Mapping[str, Any], folder: Path) -> str:
    """Return the page of a document of `run.check`; evidence within the folder that the page will be in is linked."""

    def evidence(text: str) -> tuple[str, str] | None:
        path = Path(text)
        if not path.is_file():
            return None
        # The parent says which: each scenario has a report.html of its own.
        name = f"{path.parent.name}/{path.name}" if path.parent.resolve() != folder.resolve() else path.name
        return os.path.relpath(path.resolve(), folder.resolve()), name

    return rendered(Path(__file__).parent / "launch.html.j2", document=document, evidence=evidence)
