"""A plain copy of a dataset: labels as 8-bit PNGs of train ids, images, lists of pairs."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from ...util.files import link_or_copy
from ...util.images import write_png
from ..labels import LabelEncoding
from ..lists import Pair


def convert(
    pairs: Sequence[Pair],
    encoding: LabelEncoding,
    output: Path,
    *,
    root: Path,
    colors: Sequence[Sequence[int]],
    workers: int,
) -> Iterator[tuple[Path, Path]]:
    """Write every pair below `output`, in order; yields (image, label) relative to it.

    What exists and is not older than its source is kept, so that a stopped copy continues and
    a second one does nothing.
    """
    one = partial(convert_pair, encoding=encoding, output=output, root=root, colors=colors)
    if workers <= 1:
        yield from map(one, pairs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(one, pairs, chunksize=8)


def convert_pair(
    pair: Pair,
    *,
    encoding: LabelEncoding,
    output: Path,
    root: Path,
    colors: Sequence[Sequence[int]],
) -> tuple[Path, Path]:
    image = Path("images") / pair.image.relative_to(root)
    label = (Path("labels") / pair.label.relative_to(root)).with_suffix(".png")
    if is_older(output / label, pair.label):
        write_png(output / label, encoding.read(pair.label), colors)
    if is_older(output / image, pair.image):
        link_or_copy(pair.image, output / image)
    return image, label


def is_older(target: Path, source: Path) -> bool:
    """Return whether `target` is missing or older than `source`."""
    return not target.is_file() or target.stat().st_mtime < source.stat().st_mtime
