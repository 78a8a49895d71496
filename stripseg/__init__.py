"""stripseg: train and test semantic segmentation networks from one YAML file."""

from pathlib import Path

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.py").is_file():  # a checkout: model/ beside us is `stripseg.model`
    __path__.append(str(_checkout))
