"""The files that a config names: where lists are looked for, and whether all of them are there."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from .errors import ConfigError
from .schema import Config


def resolve_list(config: Config, path: str) -> Path:
    """A list as it stands if there is such a file, else the list of that name in DATA.data_root.

    `train_list: train.txt` thus follows `data_root`, and semseg's own paths keep their meaning.
    """
    as_it_stands = Path(os.path.expanduser(path))
    if os.path.isfile(as_it_stands):  # unlike Path.is_file, False for an impossible name
        return as_it_stands
    return Path(config.DATA.data_root) / as_it_stands


def check_files(
    config: Config, purpose: Literal["train", "test"], *, official_splits: Collection[str] = ()
) -> None:
    """ConfigError with one line for each file that the purpose needs and that is not there.

    A classifier needs no lists: the folder says what is in it. Neither does segmentation with a
    list named like one of `official_splits`.
    """
    no_folder = _data_root(config)
    complaints = [*no_folder]
    for key, path in [] if config.classifies else _lists(config, purpose):
        if path is None or not no_folder:  # without the folder, its lists are missing anyway
            known = path is not None and Path(path).stem in official_splits
            complaints += [] if known else _list(config, key, path, purpose)
    complaints += _names(config)
    if complaints:
        raise ConfigError("\n".join(f"{config.source}: {complaint}" for complaint in complaints))


def _lists(config: Config, purpose: str) -> list[tuple[str, str | None]]:
    if purpose == "test":
        return [("TEST.test_list", config.TEST.test_list)]
    lists = [("DATA.train_list", config.DATA.train_list)]
    return lists + [("DATA.val_list", config.DATA.val_list)] * config.TRAIN.evaluate


def _data_root(config: Config) -> list[str]:
    root = Path(config.DATA.data_root)
    if os.path.isdir(root):
        return []
    return [
        f"DATA.data_root {root} is not a folder (looked for {root.absolute()}); "
        f"set DATA.data_root or link dataset/{config.dataset}/data"
    ]


def _list(config: Config, key: str, path: str | None, purpose: str) -> list[str]:
    if path is None:
        cure = "; or set TRAIN.evaluate False" if key == "DATA.val_list" else ""
        return [f"{key} is not set, and {purpose}ing needs it{cure}"]
    found = resolve_list(config, path)
    if os.path.isfile(found):
        return []
    return [
        f"{key} {path} does not exist (looked for {found.absolute()}); "
        f"set {key}, or set DATA.data_root or link dataset/{config.dataset}/data"
    ]


def _names(config: Config) -> list[str]:
    path, classes = config.TEST.names_path, config.DATA.classes
    if path is None or not os.path.isfile(path):
        return []
    names = Path(path).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if len(names) == classes:
        return []
    return [
        f"TEST.names_path {path} (looked for {Path(path).absolute()}) has {len(names)} lines, "
        f"but DATA.classes is {classes}; set one of them right"
    ]
