"""stripseg: train and test semantic segmentation networks from one YAML file."""

import os
from pathlib import Path

# OpenCV reads this once, when it is loaded: a image that claims to be larger is refused
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**28))

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.py").is_file():  # a checkout: model/ beside us is `stripseg.model`
    __path__.append(str(_checkout))
