"""Draws the report's charts as inline SVG: plain lines and bars, nothing fetched, nothing scripted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

_WIDTH: Final = 880
_HEIGHT: Final = 300
_LEFT: Final = 52
_RIGHT: Final = 14
_TOP: Final = 14
_BOTTOM: Final = 40
_TICKS: Final = 6
_STACK_HEIGHT: Final = 44


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart: its name, its points in order of x, and whether it holds its value between points."""

    name: str
    points: tuple[tuple[float, float], ...]
    is_stepped: bool = False


def _colour(number: int) -> str:
    """Choose well separated hues: each a golden angle from the one before."""
    return f"hsl({(210 + number * 137.5) % 360:.0f} 58% 46%)"


def _ticks(low: float, high: float) -> list[float]:
    """Choose round numbers between two ends, about `_TICKS` of them."""
    span = high - low
    if span <= 0:
        return [low]
    magnitude = 10.0 ** math.floor(math.log10(span / _TICKS))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= span / _TICKS)
    return [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


class _Frame:
    """The axes of one chart, and where a value lands on them."""

    def __init__(self, x_range: tuple[float, float], y_max: float) -> None:
        self.x_low, self.x_high = x_range
        self.y_max = max(y_max, 1.0)

    def x(self, value: float) -> float:
        share = (value - self.x_low) / max(self.x_high - self.x_low, 1e-9)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        return round(_HEIGHT - _BOTTOM - value / self.y_max * (_HEIGHT - _TOP - _BOTTOM), 1)

    def draw(self, x_label: str, *, with_x: bool = True) -> list[str]:
        bottom = _HEIGHT - _BOTTOM
        parts: list[str] = []
        for tick in _ticks(0, self.y_max):
            y = self.y(tick)
            parts += [
                f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}"/>',
                f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>',
            ]
        for tick in _ticks(self.x_low, self.x_high) if with_x else []:
            x = self.x(tick)
            parts += [
                f'<line class="grid" x1="{x}" y1="{_TOP}" x2="{x}" y2="{bottom}"/>',
                f'<text x="{x}" y="{bottom + 17}" text-anchor="middle">{round(tick, 4):g}</text>',
            ]
        parts.append(
            f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end" class="axis">{escape(x_label)}</text>'
        )
        return parts


def _svg(label: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
    return "".join((head, f"<title>{escape(label)}</title>", *parts, "</svg>"))


def lines(label: str, series: Sequence[Series], *, x_label: str) -> str:
    """Draw lines over one axis; each line's name shows when it is pointed at."""
    points = [point for line in series for point in line.points]
    if not points:
        return _svg(label, [])
    x_range = (min(x for x, _ in points), max(x for x, _ in points))
    frame = _Frame(x_range, max(y for _, y in points) * 1.06)
    parts = frame.draw(x_label)
    if x_range[0] < 0 < x_range[1]:
        x = frame.x(0)
        parts.append(f'<line class="opening" x1="{x}" y1="{_TOP}" x2="{x}" y2="{_HEIGHT - _BOTTOM}"/>')
    for number, line in enumerate(series):
        if not line.points:
            continue
        path = [f"M{frame.x(line.points[0][0])} {frame.y(line.points[0][1])}"]
        for before, after in pairwise(line.points):
            if line.is_stepped:
                path.append(f"L{frame.x(after[0])} {frame.y(before[1])}")
            path.append(f"L{frame.x(after[0])} {frame.y(after[1])}")
        name = f"<title>{escape(line.name)}</title>"
        parts.append(f'<path class="line" d="{"".join(path)}" stroke="{_colour(number)}">{name}</path>')
    return _svg(label, parts)


def bars(label: str, named: Sequence[tuple[str, int]], *, x_label: str) -> str:
    """Draw one bar a name, its count above it."""
    if not named:
        return _svg(label, [])
    frame = _Frame((0, len(named)), max(count for _, count in named) * 1.08)
    parts = frame.draw(x_label, with_x=False)
    for number, (name, count) in enumerate(named):
        x, width = frame.x(number + 0.1), frame.x(number + 0.9) - frame.x(number + 0.1)
        y = frame.y(count)
        middle = round(x + width / 2, 1)
        parts += [
            f'<rect class="bar" x="{x}" y="{y}" width="{width:.1f}" height="{frame.y(0) - y:.1f}"/>',
            f'<text x="{middle}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{escape(name)}</text>',
        ]
        if count:
            parts.append(f'<text x="{middle}" y="{y - 4}" text-anchor="middle" class="count">{count}</text>')
    return _svg(label, parts)


def stack(label: str, shares: Sequence[float], *, of: float) -> str:
    """Draw one flat bar of several parts, in a legend's colours; one whose parts add up to `of` has the whole width."""
    parts: list[str] = []
    begin = 0.0
    for number, share in enumerate(shares):
        width = _WIDTH * share / of
        parts.append(
            f'<rect x="{begin:.1f}" y="0" width="{width:.1f}" height="{_STACK_HEIGHT}" fill="{_colour(number)}"/>'
        )
        begin += width
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_STACK_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>{''.join(parts)}</svg>"
    )


def legend(names: Sequence[str]) -> str:
    """List the names of a chart's series beside their colours."""
    items = (
        f'<span><i style="background:{_colour(number)}"></i>{escape(name)}</span>' for number, name in enumerate(names)
    )
    return f'<div class="legend">{"".join(items)}</div>'
