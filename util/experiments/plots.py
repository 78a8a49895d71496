"""Figures without a window, written whole."""

import io
from pathlib import Path
from typing import Any

from ...config.errors import StripsegError
from ..files import atomic_write

DOTS = 120  # per inch


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches.

    Raises:
        StripsegError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise StripsegError(
            "pictures need matplotlib, which is not installed: pip install matplotlib"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DOTS)
    with atomic_write(path) as file:
        file.write(picture.getvalue())
