"""Drawings of the report as SVG text, whose colours are the page's."""

from collections.abc import Sequence
from typing import Any

from concat_id.evaluation.measuring import COLOURS

WIDTH, HEIGHT = 720, 190
LEFT, RIGHT, TOP, BOTTOM = 34, 76, 10, 24


def similarity_chart(result: dict[str, Any], threshold: float) -> str:
    """Draw the similarity of every reference over the sampled frames; a cross below the axis is a frame without the face."""
    indices, curves, limits = result["frames"]["indices"], result["curves"], result["ranges"][0]
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="similarity per frame">']
    parts += [_level("grid", value, LEFT - 6, _y(value) + 3.5, "end", f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)]
    if None not in limits.values():
        top, bottom = _y(limits["genuine"]), _y(limits["impostor"])
        parts.append(f'<rect class="band" x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{max(0, bottom - top):.1f}"/>')
    parts += _guides(limits | {"one person": threshold})
    for number, curve in enumerate(curves):
        parts += _curve(curve, indices, COLOURS[number % len(COLOURS)], number)
    for at in range(0, len(indices), max(1, len(indices) // 8)):
        parts.append(_label(_x(at, len(indices)), HEIGHT - 4, "middle", indices[at]))
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


def _label(x: float, y: float, anchor: str, text: object) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _level(kind: str, value: float, x: float, y: float, anchor: str, text: str) -> str:
    """Draw a horizontal line at a value, and its text at (x, y)."""
    line = f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(value):.1f}" y2="{_y(value):.1f}"/>'
    return line + _label(x, y, anchor, text)


def _guides(levels: dict[str, float | None]) -> list[str]:
    """Draw named levels, their names to the right and never closer than a line of text."""
    parts, height = [], float("-inf")
    for value, name in sorted(((value, name) for name, value in levels.items() if value is not None), reverse=True):
        height = max(_y(value) + 3.5, height + 11)
        parts.append(_level("guide", value, WIDTH - RIGHT + 6, height, "start", name))
    return parts


def _curve(curve: Sequence[float | None], indices: Sequence[int], colour: str, number: int) -> list[str]:
    line = ""
    for at, value in enumerate(curve):
        if value is not None:
            line += f"{'M' if at == 0 or curve[at - 1] is None else 'L'}{_x(at, len(curve)):.1f} {_y(value):.1f}"
    parts = [f'<path class="curve" d="{line}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>'] if line else []
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
