"""Which image file an annotation means by a path that was written on another machine."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ...config.errors import DataError
from .model import Picture
from .parse import plain_name

UPLOAD = re.compile("[0-9a-f]{8}-")  # Label Studio's prefix of uploaded files


class Names:
    """Files by every end of their path, with and without suffix.

    Args:
        files: below `folder`.
    """

    def __init__(self, files: Sequence[Path], folder: Path) -> None:
        self._whole: dict[str, list[Path]] = {}
        self._stems: dict[str, list[Path]] = {}
        for path in files:
            relative = PurePosixPath(path.relative_to(folder).as_posix())
            for table, name in ((self._whole, relative), (self._stems, relative.with_suffix(""))):
                for end in ends(str(name)):
                    table.setdefault(end, []).append(path)

    def find(self, name: str, *, suffix: bool = True, near: str = "") -> Path | None:
        """The file whose path ends as `name` does, as far as it goes; None where there is none.

        Args:
            suffix: `name` ends in a suffix; another one, as after a conversion, is taken too.
            near: folder of the annotations, which tells train/1.jpg from val/1.jpg.
        Raises:
            ValueError: several files fit equally well.
        """
        return self.closest(name, suffix=suffix, near=near)[0]

    def closest(self, name: str, *, suffix: bool = True, near: str = "") -> tuple[Path | None, int]:
        """The same, and how many folders and names of both agree."""
        tries: list[tuple[dict[str, list[Path]], str]] = []
        for written in dict.fromkeys((name, unquote(name))):
            plain = plain_name(written)
            last = plain.rpartition("/")[2]
            if suffix:
                tries.append((self._whole, plain))
                if UPLOAD.match(last):
                    tries.append((self._whole, last[9:]))
                plain = str(PurePosixPath(plain).with_suffix("")) if last else ""
            tries.append((self._stems, plain))
        for table, wanted in tries:
            for end in ends(f"{plain_name(near)}/{wanted}") if wanted else ():
                fitting = table.get(end, [])
                if len(fitting) > 1:
                    raise ValueError(
                        f"{name} may be {fitting[0]} or {fitting[1]}; give annotations and images "
                        "the same folders"
                    )
                if fitting:
                    return fitting[0], end.count("/") + 1
        return None, 0


def ends(name: str) -> list[str]:
    """a/b/c: a/b/c, b/c, c, without differences of case or of how accents are stored."""
    name = unicodedata.normalize("NFC", name).casefold()
    parts = [part for part in name.split("/") if part]
    return ["/".join(parts[start:]) for start in range(len(parts))]


def match_pictures(
    pictures: Sequence[Picture], images: Sequence[Path], folder: Path
) -> tuple[dict[Path, Picture], list[Path], list[Picture]]:
    """(image -> picture, images without an entry, pictures without an image).

    Of entries that fit one image, those win whose path agrees furthest; shapes of one image in
    several files are put together.

    Raises:
        DataError: an entry fits several images, or two entries one image.
    """
    names = Names(images, folder)
    fitting: dict[Path, list[tuple[int, Picture]]] = {}
    unused: list[Picture] = []
    for picture in pictures:
        near = Path(picture.origin).parent.as_posix()
        try:
            image, depth = names.closest(picture.file, suffix=picture.suffix, near=near)
        except ValueError as error:
            raise DataError(f"{picture.origin}: {error}") from None
        if image is None:
            unused.append(picture)
        else:
            fitting.setdefault(image, []).append((depth, picture))
    found: dict[Path, Picture] = {}
    for image, entries in sorted(fitting.items()):
        best = max(depth for depth, _ in entries)
        unused += [picture for depth, picture in entries if depth < best]
        found[image] = together(image, [picture for depth, picture in entries if depth == best])
    return found, [image for image in images if image not in found], unused


def together(image: Path, pictures: Sequence[Picture]) -> Picture:
    """The shapes of one image in several files, as one picture.

    Raises:
        DataError: the files mean different images by it.
    """
    first = pictures[0]
    for other in pictures[1:]:
        if (other.file, other.size) != (first.file, first.size) or other.origin == first.origin:
            raise DataError(
                f"{image}: is annotated as {first.file} in {first.origin} and as {other.file} in "
                f"{other.origin}; give annotations and images the same folders"
            )
    return replace(first, shapes=[shape for picture in pictures for shape in picture.shapes])
