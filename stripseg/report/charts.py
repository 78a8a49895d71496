"""Small charts as SVG text: lines over epochs, and a reliability diagram."""

from collections.abc import Callable, Mapping, Sequence

from .html import text

WIDTH, HEIGHT, LEFT, BOTTOM = 480, 220, 48, 26
COLORS = tuple(f"var(--series-{index})" for index in range(1, 7))  # of report.css
FEW = 12  # points of a line that are marked, so that a single one is seen
Points = Sequence[tuple[float, float]]


def line_chart(title: str, series: Mapping[str, Points]) -> str:
    """Lines through (x, y) points, with the range of both axes."""

    def line(points: Sequence[str], color: str) -> str:
        joined = " ".join(points)
        path = f'<polyline fill="none" style="stroke:{color}" stroke-width="2" points="{joined}"/>'
        return path if len(points) > FEW else path + dots(points, color)

    return chart(title, series, line)


def scatter_chart(title: str, series: Mapping[str, Points]) -> str:
    """(x, y) points as dots, with the range of both axes."""

    return chart(title, series, dots)


def dots(points: Sequence[str], color: str) -> str:
    places = (point.split(",") for point in points)
    return "".join(
        f'<circle cx="{x}" cy="{y}" r="3" style="fill:{color}" opacity="0.6"/>' for x, y in places
    )


def chart(
    title: str, series: Mapping[str, Points], draw: Callable[[Sequence[str], str], str]
) -> str:
    """Axes and the names of the series around what `draw` makes of each one's places."""
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    (low_x, high_x), (low_y, high_y) = (bounds([p[axis] for p in points]) for axis in (0, 1))

    def place(x: float, y: float) -> str:
        across = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - 12)
        down = (HEIGHT - BOTTOM) - (y - low_y) / (high_y - low_y) * (HEIGHT - BOTTOM - 34)
        return f"{across:.1f},{down:.1f}"

    parts = [frame(title)]
    ticks = (low_y, (low_y + high_y) / 2, high_y)
    for value, name in zip(ticks, figures(ticks), strict=True):
        start, end = place(low_x, value).split(","), place(high_x, value).split(",")
        parts.append(
            f'<line class=grid x1="{start[0]}" y1="{start[1]}" x2="{end[0]}" y2="{end[1]}"/>'
            f'<text x="{LEFT - 5}" y="{float(start[1]) + 4:.1f}" text-anchor="end">'
            f"{name}</text>"
        )
    for value, anchor in ((low_x, "middle"), (high_x, "end")):
        across = place(value, low_y).split(",")[0]
        parts.append(f'<text x="{across}" y="{HEIGHT - 8}" text-anchor="{anchor}">{value:g}</text>')
    for index, (name, line) in enumerate(series.items()):
        color = COLORS[index % len(COLORS)]
        parts.append(draw([place(*point) for point in line], color))
        parts.append(
            f'<text x="{LEFT + 8 + 110 * index}" y="30" style="fill:{color}">{text(name)}</text>'
        )
    return "".join([*parts, "</svg>"])


def reliability_chart(bins: Sequence[Sequence[float]]) -> str:
    """How often pixels of each confidence are right; rows (pixels, right ones, sum of confidence).

    On the diagonal the network is right as often as it claims.
    """
    side, edge = 240, 34

    def place(x: float, y: float) -> tuple[float, float]:
        return edge + x * side, 28 + (1 - y) * side

    width, height = side + edge + 12, side + 28 + 26
    parts = [
        f'<svg role="img" aria-label="right, by confidence" viewBox="0 0 {width} {height}" '
        f'width="{width}">'
        '<text class=title x="0" y="14">right, by confidence</text>'
    ]
    for value in (0, 0.5, 1):
        (left, down), (right, _) = place(0, value), place(1, value)
        parts.append(
            f'<line class=grid x1="{left}" y1="{down}" x2="{right}" y2="{down}"/>'
            f'<text x="{edge - 5}" y="{down + 4}" text-anchor="end">{value:g}</text>'
            f'<text x="{place(value, 0)[0]}" y="{height - 8}" text-anchor="middle">{value:g}</text>'
        )
    total = sum(row[0] for row in bins) or 1
    most = max(row[0] for row in bins) or 1
    step = side / len(bins)
    for index, (pixels, right, confidence) in enumerate(bins):
        if not pixels:
            continue
        across, down = place(index / len(bins), right / pixels)
        shade = 0.25 + 0.75 * (pixels / most) ** 0.5
        parts.append(
            f'<rect x="{across + 1:.1f}" y="{down:.1f}" width="{step - 2:.1f}" '
            f'height="{28 + side - down:.1f}" style="fill:{COLORS[0]}" opacity="{shade:.2f}">'
            f"<title>confidence {confidence / pixels:.2f}: right {right / pixels:.2f}, "
            f"{100 * pixels / total:.1f} % of the pixels</title></rect>"
        )
    (x1, y1), (x2, y2) = place(0, 0), place(1, 1)
    parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" style="stroke:{COLORS[1]}"/>')
    return "".join([*parts, "</svg>"])


def frame(title: str) -> str:
    return (
        f'<svg role="img" aria-label="{text(title)}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}">'
        f'<text class=title x="0" y="14">{text(title)}</text>'
    )


def figures(values: Sequence[float]) -> list[str]:
    """The values with as many digits as tell them apart, at least three."""
    for digits in range(3, 7):
        shown = [f"{value:.{digits}g}" for value in values]
        if len(set(shown)) == len(values):
            break
    return shown


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest value, never the same."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
