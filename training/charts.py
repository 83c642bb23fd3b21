"""Charts as SVG, for the reports of training and of local/. The page's style sheet colours the classes."""

import math
from collections.abc import Iterable

WIDTH, HEIGHT, LEFT, BOTTOM, MARGIN = 420, 260, 56, 38, 12  # pixels: a chart, and the margins of its plot area


def chart(caption: str, x: tuple[str, float, float], y: tuple[str, float, float], inside: str) -> str:
    """A figure with axes x and y, each (name, minimum, maximum), and the SVG elements `inside`."""
    (x_name, x_low, x_high), (y_name, y_low, y_high) = x, y
    rows = "".join(
        f'<path class="grid" d="M{LEFT} {up(value, y_low, y_high):.1f}H{WIDTH - MARGIN}"/>'
        f'<text x="{LEFT - 5}" y="{up(value, y_low, y_high) + 4:.1f}" text-anchor="end">{value:g}</text>'
        for value in ticks(y_low, y_high)
    )
    columns = "".join(
        f'<path class="grid" d="M{across(value, x_low, x_high):.1f} {MARGIN}V{HEIGHT - BOTTOM}"/>'
        f'<text x="{across(value, x_low, x_high):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>'
        for value in ticks(x_low, x_high)
    )
    names = (
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{x_name}</text>'
        f'<text transform="translate(11 {(HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{y_name}</text>'
    )
    return (
        f'<figure style="width: {WIDTH}px; max-width: 100%"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"{rows}{columns}{names}{inside}</svg><figcaption>{caption}</figcaption></figure>"
    )


def line(
    style: str, xs: Iterable[float], ys: Iterable[float], x_range: tuple[float, float], y_range: tuple[float, float]
) -> str:
    points = " ".join(f"{across(x, *x_range):.1f},{up(y, *y_range):.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline class="{style}" points="{points}"/>'


def ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers between low and high."""
    power = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(step for step in (5 * power, 2 * power, power) if (high - low) / step >= 4)
    return [
        round(number * step, 10) for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def across(value: float, low: float, high: float) -> float:
    return LEFT + (WIDTH - MARGIN - LEFT) * (value - low) / (high - low)


def up(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - MARGIN) * (value - low) / (high - low)
