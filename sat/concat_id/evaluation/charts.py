"""Drawings of the report as SVG text, whose colours are the page's."""

from collections.abc import Sequence
from html import escape
from typing import Any

from concat_id.evaluation.measuring import COLOURS

WIDTH, HEIGHT = 720, 190
LEFT, RIGHT, TOP, BOTTOM = 34, 76, 10, 24


def similarity_chart(result: dict[str, Any], threshold: float) -> str:
    """Draw the similarity of every reference over the sampled frames; a cross below the axis is a frame without the face."""
    indices, curves = result["frames"]["indices"], result["curves"]
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="similarity per frame">', _grid()]
    limits = result["ranges"][0]
    if limits["genuine"] is not None and limits["impostor"] is not None:
        top, bottom = _y(limits["genuine"]), _y(limits["impostor"])
        parts.append(f'<rect class="band" x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{max(0, bottom - top):.1f}"/>')
    parts += _guides({"genuine": limits["genuine"], "one person": threshold, "impostor": limits["impostor"]})
    for number, curve in enumerate(curves):
        parts += _curve(curve, indices, COLOURS[number % len(COLOURS)], number)
    step = max(1, len(indices) // 8)
    parts += [
        f'<text class="tick" x="{_x(at, len(indices)):.1f}" y="{HEIGHT - 4}" text-anchor="middle">{indices[at]}</text>'
        for at in range(0, len(indices), step)
    ]
    return "".join([*parts, "</svg>"])


def interval_bar(mean: float, low: float | None, high: float | None, limits: tuple[float, float]) -> str:
    """Draw a mean with its interval on the scale of `limits`, 100 units wide."""
    start, end = limits
    span = max(end - start, 1e-9)

    def place(value: float) -> float:
        return 2 + 96 * min(max((value - start) / span, 0), 1)

    line = "" if low is None or high is None else f'<line x1="{place(low):.1f}" x2="{place(high):.1f}" y1="5" y2="5" class="range"/>'
    tick = f'<line x1="{place(mean):.1f}" x2="{place(mean):.1f}" y1="1" y2="9" class="mean"/>'
    axis = '<line x1="2" x2="98" y1="5" y2="5" class="axis"/>'
    return f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{axis}{line}{tick}</svg>'


def _x(at: int, count: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (at / (count - 1) if count > 1 else 0.5)


def _y(value: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM - 10) * (1 - min(max(value, 0.0), 1.0))


def _grid() -> str:
    lines = []
    for value in (0, 0.25, 0.5, 0.75, 1):
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(value):.1f}" y2="{_y(value):.1f}"/>')
        lines.append(f'<text class="tick" x="{LEFT - 6}" y="{_y(value) + 3.5:.1f}" text-anchor="end">{value:g}</text>')
    return "".join(lines)


def _guides(levels: dict[str, float | None]) -> list[str]:
    """Draw named levels, their names to the right and never closer than a line of text."""
    known = sorted(((value, name) for name, value in levels.items() if value is not None), reverse=True)
    parts, last = [], float("-inf")
    for value, name in known:
        height = max(_y(value) + 3.5, last + 11)
        last = height
        parts.append(f'<line class="guide" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(value):.1f}" y2="{_y(value):.1f}"/>')
        parts.append(f'<text class="tick" x="{WIDTH - RIGHT + 6}" y="{height:.1f}">{escape(name)}</text>')
    return parts


def _curve(curve: Sequence[float | None], indices: Sequence[int], colour: str, number: int) -> list[str]:
    parts, piece = [], []
    for at, value in enumerate([*curve, None]):
        if value is not None:
            piece.append(f"{_x(at, len(curve)):.1f},{_y(value):.1f}")
        elif piece:
            parts.append(f'<polyline points="{" ".join(piece)}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>')
            piece = []
    for at, value in enumerate(curve):
        x = _x(at, len(curve))
        told = f"frame {indices[at]}, reference {number + 1}: " + ("no face" if value is None else f"{value:.3f}")
        if value is None:
            y = HEIGHT - BOTTOM - 4
            shape = f'<path d="M{x - 3:.1f} {y - 3}l6 6m0 -6l-6 6" stroke="{colour}" stroke-width="1.5"><title>{told}</title></path>'
        else:
            shape = f'<circle cx="{x:.1f}" cy="{_y(value):.1f}" r="3.2" fill="{colour}"><title>{told}</title></circle>'
        parts.append(shape)
    return parts
