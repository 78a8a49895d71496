"""Label values: official encodings to train ids, exactly once, and refusal of what is neither."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..config.errors import ConfigError, DataError
from ..util.images import read_label
from .description import FORBIDDEN, DatasetDescription, raw_to_train_table
from .lists import Pair
from .matlab_file import refuse_bomb

IGNORE_LABEL = 255  # of pixels without a class, wherever a config does not say another
FILES_EXAMINED = 32
MATLAB_VARIABLES = ("S", "LabelMap", "GTcls")  # of LMO, PASCAL Context, SBD


@dataclass(frozen=True)
class LabelEncoding:
    """How label files are read: `table` maps stored values to train ids or FORBIDDEN."""

    table: np.ndarray
    classes: int
    ignore_label: int
    kind: str  # "raw" or "train_id"
    hint: str = ""

    def read(self, path: Path) -> np.ndarray:
        """(H, W) uint8 train ids of a label file.

        Raises:
            DataError: the file is damaged or holds a value that is neither class nor ignored.
        """
        stored = read_stored(path)
        if stored.dtype != np.uint8 and (stored.min() < 0 or stored.max() >= len(self.table)):
            self._refuse(path, np.unique(stored[(stored < 0) | (stored >= len(self.table))]))
        if stored.dtype == np.uint8:
            train_id = cv2.LUT(stored, self.table[:256])  # faster than indexing by an image
        else:
            train_id = self.table[stored]
        if train_id.min() == FORBIDDEN:
            self._refuse(path, np.unique(stored[train_id == FORBIDDEN]))
        return train_id.astype(np.uint8)

    def _refuse(self, path: Path, values: np.ndarray) -> None:
        shown = ", ".join(str(value) for value in values[:5])
        allowed = f"0 to {self.classes - 1} and {self.ignore_label} (ignored)"
        if self.kind == "raw":
            allowed = "those of the official encoding"
        raise DataError(
            f"{path}: label value{'s' if len(values) > 1 else ''} {shown} "
            f"{'are' if len(values) > 1 else 'is'} outside the classes; expected {allowed}."
            f"{' ' + self.hint if self.hint else ''}"
        )


def read_stored(path: Path) -> np.ndarray:
    """(H, W) integers as a label file stores them: an image, or a MATLAB file."""
    return read_matlab_label(path) if path.suffix == ".mat" else read_label(path)


def read_matlab_label(path: Path) -> np.ndarray:
    """(H, W) integers of the label variable of a .mat file (version 5 to 7.2).

    Raises:
        DataError: scipy is not installed, or the file is missing, damaged or holds no label.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(
            f"{path}: reading .mat files needs scipy, which is not installed: pip install scipy"
        ) from error
    if not path.is_file():
        raise DataError(f"{path}: label file does not exist; check DATA.data_root and the list")
    try:
        refuse_bomb(path)
        content = loadmat(path, variable_names=MATLAB_VARIABLES)
    except Exception as error:  # scipy raises whatever it likes on damaged bytes
        raise DataError(f"{path}: cannot be decoded as a .mat file ({error})") from error
    name = next((name for name in MATLAB_VARIABLES if name in content), None)
    if name is None:
        raise DataError(f"{path}: holds none of the variables {', '.join(MATLAB_VARIABLES)}")
    label = content[name]
    if label.dtype.names:  # SBD's struct
        if "Segmentation" not in label.dtype.names or label.size == 0:
            raise DataError(f"{path}: {name} is a struct without Segmentation")
        label = label["Segmentation"][0, 0]
    if label.ndim != 2 or label.dtype.kind not in "iu":
        raise DataError(f"{path}: {name} is not a map of integers but {label.dtype} {label.shape}")
    return label


def choose_encoding(
    pairs: Sequence[Pair],
    description: DatasetDescription | None,
    *,
    declared: str = "auto",
    classes: int,
    ignore_label: int = IGNORE_LABEL,
) -> LabelEncoding:
    """The encoding of these label files, declared (`DATA.labels`) or recognised from them.

    Raises:
        ConfigError: raw labels are declared and the catalog knows no official encoding, or the
            class count disagrees with it.
    """
    raw_exists = description is not None and description.raw_labels is not None
    if declared == "raw" and not raw_exists:
        name = description.name if description else "this dataset"
        raise ConfigError(
            f"DATA.labels raw: {name} has no official encoding in the catalog; "
            "set DATA.labels to train_id"
        )
    kind = declared
    if declared == "auto":
        kind = recognise(pairs, description) if raw_exists else "train_id"
    if kind == "raw":
        return raw_encoding(description, classes, ignore_label, declared)
    table = np.full(256, FORBIDDEN, np.int16)
    table[:classes] = np.arange(classes)
    table[ignore_label] = ignore_label
    hint = "Check DATA.classes."
    if raw_exists:
        hint = (
            f"If these are {description.name}'s official label files, set DATA.labels to raw "
            f"(now: train_id, {'declared' if declared != 'auto' else 'recognised'})."
        )
    return LabelEncoding(table, classes, ignore_label, "train_id", hint)


def raw_encoding(
    description: DatasetDescription, classes: int, ignore_label: int, declared: str
) -> LabelEncoding:
    """The official encoding of a dataset of the catalog."""
    if classes != description.classes:
        raise ConfigError(
            f"DATA.classes is {classes}, and {description.name}'s official labels map to "
            f"{description.classes} classes; correct DATA.classes, or set DATA.labels to train_id"
        )
    table = raw_to_train_table(description)
    table = np.where(table == description.ignore, ignore_label, table).astype(np.int16)
    hint = (
        f"If these files hold train ids already (0 to {classes - 1}), set DATA.labels to train_id "
        f"(now: raw, {'declared' if declared == 'raw' else 'recognised'})."
    )
    return LabelEncoding(table, classes, ignore_label, "raw", hint)


def recognise(pairs: Sequence[Pair], description: DatasetDescription) -> str:
    """ "raw" or "train_id", from file names first and the values of some files second."""
    evidence = description.evidence
    files = [pair.label for pair in pairs if pair.label is not None]
    if not files:
        return "train_id"
    if evidence.train_suffixes and all(f.name.endswith(evidence.train_suffixes) for f in files):
        return "train_id"
    if evidence.raw_suffixes and all(f.name.endswith(evidence.raw_suffixes) for f in files):
        return "raw"
    chosen = np.unique(np.linspace(0, len(files) - 1, FILES_EXAMINED).round().astype(int))
    seen: set[int] = set()
    for index in chosen:
        seen.update(np.unique(read_stored(files[index])).tolist())
    if seen & set(evidence.train_values):
        return "train_id"
    if seen & set(evidence.raw_values):
        return "raw"
    return "raw" if evidence.otherwise == "raw" else "train_id"
