"""Keys of the older semseg, SPNet and PyConvSegNet YAML files, translated or explained.

Each translated or meaningless key leaves a notice, one sentence that the commands log once. Keys
that only gained a new default or spelling (`resume:` left empty, `arch: psa`, 1 for True) need no
translation: types.py accepts them.
"""

import os
from collections.abc import Callable
from typing import Any

from .errors import ConfigError
from .schema import Origins
from .types import Choice, Maybe

Tree = dict[str, dict[str, Any]]  # section -> key -> value
RENAMED = {
    ("TRAIN", "dataset"): ("DATA", "dataset"),
    ("TRAIN", "backbone_output_stride"): ("TRAIN", "output_stride"),
}
# accepted, with a notice of what they do or that they have no effect; not options of a Config
RETIRED = (
    ("Distributed", "opt_level"),
    ("Distributed", "keep_batchnorm_fp32"),
    ("TEST", "best_mIoU_model_path"),
    ("TEST", "best_mIoU_save_folder"),
)
OLD_KEYS = {*RENAMED, ("TRAIN", "backbone_net"), *RETIRED}
OPT_LEVEL_PRECISION = {"O0": "fp32", "O1": "fp16", "O2": "fp16", "O3": "fp16"}


def translate(layer: Tree, earlier: Tree) -> list[str]:
    """Rename the old keys of one layer in place; `earlier` is what lower layers said."""
    notices = []
    for (section, key), (new_section, new_key) in RENAMED.items():
        if key not in layer.get(section, {}):
            continue
        value = layer[section].pop(key)
        layer.setdefault(new_section, {}).setdefault(new_key, value)
        notices.append(f"{section}.{key} is now {new_section}.{new_key}")
    train = layer.get("TRAIN", {})
    if "backbone_net" in train:
        family = train.pop("backbone_net")
        depth = train.get("layers", earlier.get("TRAIN", {}).get("layers", 50))
        if family is not None:
            train.setdefault("backbone", f"{family}{depth}")
            notices.append(f"TRAIN.backbone_net is now TRAIN.backbone {train['backbone']}")
    return notices


def retire(tree: Tree, origins: Origins) -> list[str]:
    """Apply retired options that still have an effect; return a notice for each that is set.

    Raises:
        ConfigError: the value of one was never possible.
    """
    level = tree["Distributed"].get("opt_level")
    try:
        Maybe(Choice(*OPT_LEVEL_PRECISION)).validate(level)
    except ValueError as error:
        key = ("Distributed", "opt_level")
        raise ConfigError(f"{origins.get(key, key[0])}: {'.'.join(key)} {error}") from None
    notices: list[str] = []
    for step in (_apex, _batch_norm, _best_checkpoint, _missing_name_files):
        step(tree, notices.append)
    drop_retired(tree)
    return notices


def drop_retired(tree: Tree) -> None:
    """Remove retired options, which configs of earlier versions contain."""
    for section, key in RETIRED:
        tree[section].pop(key, None)


def _apex(tree: Tree, notice: Callable[[str], None]) -> None:
    """NVIDIA removed apex.amp; its levels become a precision, unless that is given itself."""
    options, train = tree["Distributed"], tree["TRAIN"]
    level = str(options.get("opt_level")).upper()
    if options.get("use_apex") not in (True, 1) or level not in OPT_LEVEL_PRECISION:
        return
    precision = train.setdefault("precision", OPT_LEVEL_PRECISION[level])
    if level == "O0" or precision != OPT_LEVEL_PRECISION[level]:
        return
    notice(
        f"Distributed.opt_level {level} of apex, which is retired, runs as TRAIN.precision "
        f"{precision} with PyTorch's mixed precision"
    )


def _batch_norm(tree: Tree, notice: Callable[[str], None]) -> None:
    if tree["Distributed"].get("keep_batchnorm_fp32") is not None:
        notice("Distributed.keep_batchnorm_fp32 has no effect: batch norm always computes in fp32")


def _best_checkpoint(tree: Tree, notice: Callable[[str], None]) -> None:
    for old, new in (
        ("best_mIoU_model_path", "model_path"),
        ("best_mIoU_save_folder", "save_folder"),
    ):
        if tree["TEST"].get(old) is not None:
            notice(f"TEST.{old} has no effect: TEST.{new} is what counts")


def _missing_name_files(tree: Tree, notice: Callable[[str], None]) -> None:
    """Older YAMLs name files that came with their repository; the catalog replaces them."""
    test = tree["TEST"]
    for key, content in (("colors_path", "colours"), ("names_path", "names")):
        path = test.get(key)
        if isinstance(path, str) and not os.path.isfile(os.path.expanduser(path)):
            notice(f"TEST.{key} {path} does not exist; the catalog's {content} are used")
            test[key] = None
