"""Line charts as inline SVG, each with the same in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from stillroom.using.page import details, lines

Number = int | float
Point = tuple[Number, Number]
_WIDTH, _HEIGHT = 420, 236  # of the drawing; it is scaled to its column
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 408, 8, 204
_MOST_POINTS = 400
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_COLOURS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A named line, or marks alone; points are (x, y) in the order of x."""

    name: str
    points: Sequence[Point]
    marks: bool = False
    colour: int | None = None  # its own in the order of the chart where None
    dash: int = 0  # number of a pattern


@dataclass(frozen=True, slots=True)
class _Axis:
    """Values and the places, of the drawing, where the axis begins and ends."""

    low: Number
    high: Number
    begin: int
    end: int
    is_log: bool = False

    def place(self, value: Number) -> Number:
        low, high, value = (
            math.log10(v) if self.is_log else v for v in (self.low, self.high, value)
        )
        return self.begin + (self.end - self.begin) * (value - low) / (high - low)

    def ticks(self) -> list[Number]:
        from matplotlib.ticker import LogLocator, MaxNLocator

        decades = math.log10(self.high / self.low) if self.is_log else 0
        locator = MaxNLocator(6, steps=[1, 2, 5, 10])
        if decades > 0.9:
            locator = LogLocator(subs=(1, 2, 5) if decades < 3 else (1,))
        found = locator.tick_values(self.low, self.high)
        return [float(value) for value in found if self.low <= value <= self.high]


def chart(
    title: str, series: Sequence[Series], *, x: str = "step", log: bool = False, note: str = ""
) -> str:
    """Return a figure of lines; "" where there is no point. `log` needs values above 0, and leaves
    others out.
    """
    kept = [_thinned(one, log) for one in series]
    kept = [(i, one) for i, one in enumerate(kept) if one.points]
    if not kept:
        return ""
    xs, ys = zip(*(point for _, one in kept for point in one.points), strict=True)
    across, up = _axis(xs, _LEFT, _RIGHT), _axis(ys, _BOTTOM, _TOP, log)
    styles = [_style(i if one.colour is None else one.colour, one.dash) for i, one in kept]
    drawn = "".join(_drawn(one, s, across, up) for (_, one), s in zip(kept, styles, strict=True))
    words = [_described(one, x) for _, one in kept]
    names = "".join(
        f'<li><svg viewBox="0 0 26 12" aria-hidden="true"><path d="M1 6H25" {style}/></svg>'
        f" {escape(one.name)}</li>"
        for (_, one), style in zip(kept, styles, strict=True)
    )
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    label = escape(f"{title} over {x}; the same in words below")
    return (
        f"<figure><h3>{escape(title)}</h3>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"{_frame(across, up, x)}{drawn}</svg>"
        f'<ul class="legend">{names}</ul>{caption}{details("in words", lines(words))}</figure>'
    )


def number(value: Number) -> str:
    """Return a figure in four digits."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _thinned(one: Series, log: bool) -> Series:
    points = [p for p in one.points if not log or p[1] > 0]
    step = 1 + len(points) // _MOST_POINTS
    last = points[-1:] if (len(points) - 1) % step else []
    return replace(one, points=points[::step] + last)


def _axis(values: Sequence[Number], begin: int, end: int, log: bool = False) -> _Axis:
    low, high = min(values), max(values)
    if log:
        return _Axis(low / 1.1, high * 1.1, begin, end, True)
    room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return _Axis(low - room, high + room, begin, end)


def _style(number: int, dash: int) -> str:
    dashes = _DASHES[(dash + number // _COLOURS) % len(_DASHES)]
    dashing = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'class="s{number % _COLOURS}"{dashing}'


def _frame(across: _Axis, up: _Axis, x: str) -> str:
    parts = []
    for value in up.ticks():
        y = up.place(value)
        parts.append(f'<path class="axis" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in across.ticks():
        place = across.place(value)
        parts.append(f'<path class="axis" d="M{place:.1f} {_BOTTOM}v4"/>')
        text = f'y="{_BOTTOM + 15}" text-anchor="middle">{number(value)}</text>'
        parts.append(f'<text x="{place:.1f}" {text}')
    end = f'<text x="{_RIGHT}" y="{_HEIGHT - 1}" text-anchor="end">{escape(x)}</text>'
    return "".join(parts) + end


def _drawn(one: Series, style: str, across: _Axis, up: _Axis) -> str:
    places = [(across.place(x), up.place(y)) for x, y in one.points]
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    if one.marks or len(places) == 1:
        d = "".join(f"M{x - 4:.1f} {y:.1f}h8M{x:.1f} {y - 4:.1f}v8" for x, y in places)
    return f'<path {style} d="{d}"><title>{escape(one.name)}</title></path>'


def _described(one: Series, x: str) -> str:
    points = one.points
    if len(points) == 1:
        return f"{one.name}: {number(points[0][1])} at {x} {number(points[0][0])}"
    low, high = (pick(points, key=lambda p: p[1]) for pick in (min, max))
    first, last = (f"{number(y)} at {x} {number(at)}" for at, y in (points[0], points[-1]))
    between = f"least {number(low[1])} at {number(low[0])}, most {number(high[1])} at"
    return f"{one.name}: from {first} to {last}; {between} {number(high[0])}"
