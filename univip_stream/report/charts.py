"""Distributions as inline SVG: bars, a scale, the median. Colours come from the page's style."""

import math

import numpy as np
from markupsafe import Markup, escape

from univip_stream.report.numbers import Distribution

_WIDTH, _HEIGHT = 320, 132
_LEFT, _RIGHT, _TOP, _BOTTOM = 6, 6, 18, 26
_TICKS = 5


def pretty(value: float, unit: str = "") -> str:
    """Return a number in readable form, with its unit: 12,345, 3.2, 0.05."""
    digits = 0 if value == round(value) or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    text = f"{value:,.{digits}f}"
    text = text.rstrip("0").rstrip(".") if digits else text
    return f"{text} {unit}".strip()


def share(part: float, whole: float) -> str:
    """Return `part` of `whole` in percent; small shares keep a digit, and only nothing is 0 %."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return "< 0.1 %"
    return f"{percent:.1f} %" if percent < 10 and percent else f"{percent:.0f} %"


def histogram(found: Distribution) -> Markup:
    """Return an SVG of a distribution: bars, a scale, the median as a line, and each bar's numbers on hovering."""
    edges, counts = found.edges, found.counts
    inner, base = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM
    top = max(int(counts.max()), 1)
    total = max(int(counts.sum()), 1)

    def x_of(value: float) -> float:
        if found.logarithmic:
            at = math.log(max(value, edges[0]) / edges[0]) / math.log(edges[-1] / edges[0])
        else:
            at = (value - edges[0]) / (edges[-1] - edges[0])
        return _LEFT + inner * min(max(at, 0.0), 1.0)

    parts = []
    for low, high, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True):
        left, right = x_of(low), x_of(high)
        height = (base - _TOP) * count / top
        height = max(height, 1.0) if count else 0.0  # a bin with one value of a million stays visible
        label = f"{_bin(found, float(low), float(high))}: {count:,} {found.of} ({share(count, total)})"
        parts.append(
            f'<g class="bar"><title>{escape(label)}</title>'
            f'<rect class="reach" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{base - _TOP}"/>'
            f'<rect class="fill" x="{left + 0.5:.1f}" y="{base - height:.1f}" width="{max(right - left - 1, 0.5):.1f}" '
            f'height="{height:.1f}"/></g>'
        )
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    for value in _ticks(found):
        centre = value + 0.5 if found.whole and edges[1] - edges[0] == 1 else value
        x = x_of(centre)
        anchor = "start" if x < _LEFT + 12 else "end" if x > _WIDTH - _RIGHT - 12 else "middle"
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 17}" text-anchor="{anchor}">{pretty(value)}</text>')
    if not found.total:
        return _svg("".join(parts), f"{found.name}: no {found.of}")
    middle = found.median + 0.5 if found.whole and edges[1] - edges[0] == 1 else found.median
    x = x_of(middle)
    side = "end" if x > _WIDTH * 0.6 else "start"
    shift = -4 if side == "end" else 4
    parts.append(f'<line class="median" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{base}"/>')
    parts.append(
        f'<text class="median-text" x="{x + shift:.1f}" y="13" text-anchor="{side}">'
        f"median {escape(pretty(found.median, found.unit.split()[0] if found.unit else ''))}</text>"
    )
    label = f"{found.name}: {pretty(found.low)} to {pretty(found.high)} {found.unit}, median {pretty(found.median)}"
    return _svg("".join(parts), label)


def _svg(parts: str, label: str) -> Markup:
    opening = f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
    return Markup(f"{opening}{parts}</svg>")  # its texts are escaped already


def _bin(found: Distribution, low: float, high: float) -> str:
    if found.whole:
        last = round(high) - 1
        return f"{pretty(low)}" if last == round(low) else f"{pretty(low)} to {pretty(last)}"
    return f"{pretty(low)} to {pretty(high, found.unit)}"


def _ticks(found: Distribution) -> list[float]:
    """Return about _TICKS round numbers within the scale."""
    low, high = float(found.edges[0]), float(found.edges[-1])
    if found.whole:
        high = max(low, high - 1)
    if found.logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            ticks = [step * 10.0**decade for decade in decades for step in steps]
            ticks = [tick for tick in ticks if low <= tick <= high]
            if len(ticks) <= _TICKS + 1:
                return ticks
        return ticks
    rough = max(high - low, 1e-9) / _TICKS
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough * 0.8)
    step = max(math.ceil(step), 1.0) if found.whole else step
    return [float(tick) for tick in np.arange(math.ceil(low / step - 1e-9) * step, high + step * 1e-6, step)]
