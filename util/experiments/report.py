"""Tables of many runs, in the files that readers and programs want, and plots as PNG."""

import csv
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...config.errors import StripsegError
from ..files import atomic_write, write_text
from ..logger import visible

DOTS_PER_INCH = 120
CELL = 60  # characters of a cell for readers; results.csv and .json have all of them
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"±": r"$\pm$", **{sign: f"\\{sign}" for sign in "&%#_{}$"}}


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of a size in inches, without a window.

    Raises:
        StripsegError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise StripsegError("plots need matplotlib: pip install 'stripseg[plots]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as the suffix says (.png, .svg), whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi=DOTS_PER_INCH, bbox_inches="tight")
    with atomic_write(path) as file:
        file.write(content.getvalue())


def write_tables(
    folder: Path,
    intro: str,
    rows: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    plots: Sequence[str],
) -> str:
    """Write results.md and .tex for readers, results.csv and .json for programs.

    Args:
        intro: Markdown above the table.
        rows: {column: value} of the table for readers.
        records: {column: value} of the exact figures.
        plots: names of the PNG files to show.
    Returns:
        The table in Markdown, which a terminal can show.
    """
    table = [list(rows[0]), *(list(map(plain, row.values())) for row in rows)]
    parts = [intro, markdown(table), *(f"![{name}]({name}.png)" for name in plots)]
    write_text(folder / "results.md", "\n\n".join(parts) + "\n")
    write_text(folder / "results.tex", latex(table))
    values = [list(records[0] if records else []), *(list(record.values()) for record in records)]
    write_text(folder / "results.csv", as_csv(values))
    write_text(folder / "results.json", json.dumps(records, indent=1, default=str) + "\n")
    return parts[1]


def plain(value: Any) -> str:
    """A value for readers, without line breaks and characters that command a terminal."""
    text = f"{value:.5g}" if isinstance(value, float) else "" if value is None else str(value)
    return visible(text)[:CELL]


def markdown_text(text: str) -> str:
    """Return one line of text in which Markdown finds no HTML, image, link or cell."""
    return re.sub(r"([\\|`\[\]])", r"\\\1", html.escape(visible(text), quote=False))


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a table whose cells hold no HTML, image or link; the first line is the header."""
    escaped = [[markdown_text(plain(cell)) for cell in line] for line in table]
    header, *rows = [f"| {' | '.join(cells)} |" for cells in escaped]
    return "\n".join([header, "| --- " * len(table[0]) + "|", *rows])


def latex(table: Sequence[Sequence[str]]) -> str:
    """Return a tabular for the booktabs package, in whose cells LaTeX finds no command."""
    escaped = [
        ["".join(LATEX.get(sign, sign) for sign in plain(cell)) for cell in line] for line in table
    ]
    header, *rows = [" & ".join(cells) + r" \\" for cells in escaped]
    begin = [rf"\begin{{tabular}}{{{'l' * len(table[0])}}}", r"\toprule", header, r"\midrule"]
    return "\n".join([*begin, *rows, r"\bottomrule", r"\end{tabular}", ""])


def as_csv(table: Sequence[Sequence[Any]]) -> str:
    """Return a table that no spreadsheet finds a formula in; numbers stay as they are."""
    formula = re.compile(r"[=+\-@\t\r](?!(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$)", re.IGNORECASE)
    safe = [
        [f"'{cell}" if isinstance(cell, str) and formula.match(cell) else cell for cell in line]
        for line in table
    ]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(safe)
    return out.getvalue()
