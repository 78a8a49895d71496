"""Label files of MATLAB (.mat): LMO, PASCAL Context, SBD."""

from pathlib import Path

import numpy as np

from ..config.errors import DataError

VARIABLES = ("S", "LabelMap", "GTcls")  # LMO, PASCAL Context, SBD


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
        content = loadmat(path, variable_names=VARIABLES)
    except Exception as error:  # scipy raises whatever it likes on damaged bytes
        raise DataError(f"{path}: cannot be decoded as a .mat file ({error})") from error
    name = next((name for name in VARIABLES if name in content), None)
    if name is None:
        raise DataError(f"{path}: holds none of the variables {', '.join(VARIABLES)}")
    label = content[name]
    if label.dtype.names:  # SBD's struct
        label = label["Segmentation"][0, 0]
    if label.ndim != 2 or label.dtype.kind not in "iu":
        raise DataError(f"{path}: {name} is no map of integers, but {label.dtype} {label.shape}")
    return label
