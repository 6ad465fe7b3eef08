"""Charts of a report, as SVG that is written into the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

# Okabe and Ito's, which people who see few colours can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
FAILED = "#B00020"
_STEPS_S = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 43_200, 1e5, 1e6, 1e9)
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 720, 170, 46, 22, 8, 10

Points = Sequence[tuple[float, float]]


class Chart:
    """A frame with axes, that marks are added to.

    Args:
        seconds: of the horizontal axis.
        top: of the vertical axis, from 0.
        unit: of its labels: `%` for shares, `s`, or nothing.
        about: what it shows, for those who do not see it.
    """

    def __init__(self, seconds: float, top: float, unit: str, about: str) -> None:
        self._seconds, self._top = max(seconds, 1e-9), max(top, 1e-9)
        self._parts: list[str] = []
        self._unit, self._about = unit, about

    def band(self, low: Points, high: Points, colour: str) -> None:
        """An area between two lines with the same times."""
        points = [*self._whole(high), *reversed(self._whole(low))]
        self._parts.append(f'<polygon points="{self._path(points)}" fill="{colour}"/>')

    def _whole(self, points: Points) -> Points:
        """From the first moment to the last."""
        return [(0.0, points[0][1]), *points, (self._seconds, points[-1][1])] if points else points

    def line(self, points: Points, colour: str, dash: str = "") -> None:
        """A line; nothing of fewer than two points."""
        if len(points) > 1:
            dashed = f' stroke-dasharray="{dash}"' if dash else ""
            style = f'fill="none" stroke="{colour}" stroke-width="1.6"{dashed}'
            self._parts.append(f'<polyline points="{self._path(points)}" {style}/>')

    def steps(self, points: Points, colour: str, dash: str = "") -> None:
        """A line that keeps each value until the next, and the last to the end."""
        found: list[tuple[float, float]] = []
        for at, value in points:
            if found:
                found.append((at, found[-1][1]))
            found.append((at, value))
        if found:
            found.append((self._seconds, found[-1][1]))
        self.line(found, colour, dash)

    def span(self, begin: float, end: float, label: str) -> None:
        """A time in which something was broken."""
        x, width = self._x(begin), self._x(end) - self._x(begin)
        box = f'x="{x:.1f}" y="{_TOP}" width="{width:.1f}" height="{_HEIGHT - _TOP - _BOTTOM}"'
        self._parts.append(f'<rect {box} fill="#000" opacity="0.10"><title>{escape(label)}</title></rect>')

    def svg(self) -> str:
        """All of it."""
        lines = []
        for i in range(5):
            y = self._y(self._top * i / 4)
            lines.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
            lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{self._label(i / 4)}</text>')
        step = next(one for one in _STEPS_S if self._seconds / one <= 10)
        for i in range(int(self._seconds / step) + 1):
            text = f"{i * step:g}" + (" s" if i == 0 else "")
            lines.append(f'<text x="{self._x(i * step):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{text}</text>')
        box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(self._about)}"'
        return f"<svg {box}>{''.join(self._parts)}{''.join(lines)}</svg>"

    def _label(self, part: float) -> str:
        value = self._top * part
        if self._unit == "%":
            return f"{value:.0%}"
        digits = 0 if self._top >= 8 else 1 if self._top >= 0.8 else 2
        return f"{value:.{digits}f}" + (f" {self._unit}" if self._unit else "")

    def _x(self, at: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(1.0, at / self._seconds)

    def _y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * min(1.0, value / self._top)

    def _path(self, points: Points) -> str:
        return " ".join(f"{self._x(at):.1f},{self._y(value):.1f}" for at, value in points)


def stacked(
    shares: Sequence[tuple[float, Mapping[str, float]]], names: Sequence[str]
) -> list[tuple[str, Points, Points]]:
    """(name, lower line, upper line) of each name, one on top of the other.

    Args:
        shares: time, and share by name.
        names: from bottom to top.
    """
    low: Points = [(at, 0.0) for at, _ in shares]
    found: list[tuple[str, Points, Points]] = []
    for name in names:
        high: Points = [(at, below + row.get(name, 0.0)) for (at, below), (_, row) in zip(low, shares, strict=True)]
        found.append((name, low, high))
        low = high
    return found


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names beside their colours."""
    return "".join(
        f'<span class="key"><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in entries
    )
