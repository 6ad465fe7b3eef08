"""What plots share: one seam to matplotlib, colours that stay with a region, and files that are written whole."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from routing.errors import RoutingError

# Okabe and Ito's, which people who see few colours can tell apart; then the same, dashed, and dotted.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
_LINES = ("-", "--", ":")


def figure(width: float, height: float) -> Any:
    """An empty figure, in inches.

    Raises:
        RoutingError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise RoutingError("plots need matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def style(index: int) -> dict[str, Any]:
    """Colour and line of the region at this place of the fleet."""
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": _LINES[index // len(_COLOURS) % len(_LINES)]}


def plain(axes: Any, title: str, *, top: float | None = None) -> None:
    """Title at the left, a light grid, no frame; from 0 up."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.set_ylim(0, top)
    axes.tick_params(labelsize=8)


def legend(fig: Any, names: Sequence[str], axes: Any) -> None:
    """One for all panels, below them."""
    handles = [axes.plot([], [], **style(i))[0] for i in range(len(names))]
    fig.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), fontsize=8, frameon=False)


def picture(fig: Any) -> Image.Image:
    """The figure as a picture, to show or keep."""
    content = BytesIO()
    fig.savefig(content, format="png", metadata={"Software": None})
    found = Image.open(content)
    found.load()
    return found


def save(fig: Any, path: Path) -> None:
    """Write a PNG.

    Raises:
        RoutingError: it cannot be written.
    """
    try:
        fig.savefig(path, format="png", metadata={"Software": None})
    except OSError as error:
        raise RoutingError(f"{path}: cannot be written ({error.strerror})") from error
