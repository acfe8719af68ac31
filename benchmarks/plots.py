"""Plots as SVG files under `.cache/plots`, without a library: lines over numbers, and bars with their intervals."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

FOLDER: Final = Path(__file__).resolve().parents[1] / ".cache" / "plots"
COLOURS: Final = ("#1b6ca8", "#c8553d", "#4b8b3b", "#7a5195")
WIDTH: Final = 760
HEIGHT: Final = 400
LEFT: Final = 64
TOP: Final = 48
RIGHT: Final = 24
BOTTOM: Final = 56
BAR_HEIGHT: Final = 26
NAMES_WIDTH: Final = 330


class Series(NamedTuple):
    """A line with its points."""

    name: str
    points: Sequence[tuple[float, float]]


class Bar(NamedTuple):
    """A value with its interval."""

    name: str
    value: float
    low: float
    high: float


def chart(name: str, title: str, across: str, up: str, series: Sequence[Series], *, log_x: bool = False) -> Path:
    """Lines; returns the file."""
    xs = [point[0] for one in series for point in one.points]
    top = max([point[1] for one in series for point in one.points], default=1.0) or 1.0
    low, high = _scaled(min(xs), log_x), _scaled(max(xs), log_x)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        share = (_scaled(point[0], log_x) - low) / ((high - low) or 1.0)
        return LEFT + share * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - point[1] / top * (HEIGHT - TOP - BOTTOM)

    parts = [_text(WIDTH / 2, 22, title, 14), _text(WIDTH / 2, HEIGHT - 12, across), _text(14, TOP - 14, up, anchor="start")]
    parts.append(_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM) + _line(LEFT, TOP, LEFT, HEIGHT - BOTTOM))
    for step in range(5):
        value = top * step / 4
        parts.append(_text(LEFT - 8, at((xs[0], value))[1] + 4, f"{value:,.4g}", anchor="end"))
    for value in sorted(set(xs)):
        parts.append(_text(at((value, 0))[0], HEIGHT - BOTTOM + 18, f"{value:,.4g}"))
    for number, one in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        spots = [at(point) for point in one.points]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
        parts.append(_text(WIDTH - RIGHT, TOP + 18 * number, one.name, anchor="end", colour=colour))
    return _write(name, WIDTH, HEIGHT, parts)


def bars(name: str, title: str, values: Sequence[Bar]) -> Path:
    """Bars from 0, each with its interval; returns the file."""
    top = max([one.high for one in values] + [one.value for one in values], default=1.0) or 1.0
    height = TOP + BAR_HEIGHT * len(values) + 16
    wide = WIDTH - NAMES_WIDTH - RIGHT - 60
    parts = [_text(WIDTH / 2, 22, title, 14)]
    for number, one in enumerate(values):
        y = TOP + BAR_HEIGHT * number
        end, low, high = (NAMES_WIDTH + wide * value / top for value in (one.value, one.low, one.high))
        parts.append(_text(NAMES_WIDTH - 8, y + 14, one.name, anchor="end"))
        parts.append(f'<rect x="{NAMES_WIDTH}" y="{y + 3}" width="{end - NAMES_WIDTH:.1f}" height="14" fill="{COLOURS[0]}"/>')
        parts.append(_line(low, y + 10, high, y + 10, COLOURS[1]))
        parts += [_line(edge, y + 5, edge, y + 15, COLOURS[1]) for edge in (low, high)]
        parts.append(_text(max(end, high) + 6, y + 14, f"{one.value:,.4g}", anchor="start"))
    return _write(name, WIDTH, height, parts)


def _scaled(value: float, log: bool) -> float:
    return math.log2(value) if log else value


def _text(x: float, y: float, text: str, size: int = 11, anchor: str = "middle", colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float, colour: str = "#888") -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}"/>'


def _write(name: str, width: int, height: int, parts: Sequence[str]) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.svg"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">'
    path.write_text("\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"]), encoding="utf-8")
    return path
